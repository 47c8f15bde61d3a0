"""Crash campaign: the daemon, banks and finance systems as processes, killed and starved for real."""

"""The console (控制台): the daemon's pages for people, served by the daemon itself."""

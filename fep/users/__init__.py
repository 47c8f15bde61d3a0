"""Who may use the console: names, passwords, one-time codes, sessions."""

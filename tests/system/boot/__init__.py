"""A machine with a real systemd that is booted with the service installed; see test_boot.py."""

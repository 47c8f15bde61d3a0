"""The control protocol's server: sessions, methods, listeners, and the operators' command."""

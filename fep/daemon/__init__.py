"""The composition root: configuration, supervisor, life of the daemon, the ``fep`` command."""

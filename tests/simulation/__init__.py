"""The whole daemon in one process in virtual time, every source of chance drawn from one seed."""

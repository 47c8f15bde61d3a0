"""Sans-I/O protocols: bytes in, messages out, the same class on both sides of a connection."""

"""The shipped bank adapters; each is found by its entry point, and ``fep`` imports none of them."""

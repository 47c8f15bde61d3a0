"""The page of metrics (指标): what Prometheus scrapes, on a listener of its own.

What a state tells is read when somebody asks; only what no state can tell is counted meanwhile, by
whoever does it (``fep/tasks/figures.py`` and its like).
"""

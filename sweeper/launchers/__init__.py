"""Who runs the cells of a plan: a file a launcher, and `registry.py`, which names them."""

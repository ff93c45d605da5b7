"""Who runs the cells of a plan: a file a launcher, and `table.py`, which names them."""

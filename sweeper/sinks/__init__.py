"""Who is told how a sweep goes: a file a sink, and `table.py`, which names them."""

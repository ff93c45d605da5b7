"""Who is told how a sweep goes: a file a sink, and `registry.py`, which names them."""

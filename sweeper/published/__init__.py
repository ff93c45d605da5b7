"""Figures that others published, looked up in the records of a sweep."""

"""Recordings: made of a cell, and what one says of a cell that is compared with it."""

"""Runs the cells of a plan and writes their records."""

"""Texts become what a model is called with, and what it gives becomes tokens again."""

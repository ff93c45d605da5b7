"""From texts to what a model is called with, and from what it gives back to tokens."""

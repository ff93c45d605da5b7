"""Runs models and lets the outputs of their modules meet, pair by pair."""

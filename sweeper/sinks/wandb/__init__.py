"""Weights & Biases: a run a cell, a run a sweep, made from the records. Nothing else of the package knows wandb."""

from sweeper.sinks.wandb.sink import WandbSink, about_sweep, make_wandb_sink, require_usable

__all__ = ["WandbSink", "about_sweep", "make_wandb_sink", "require_usable"]

"""What a difference means: rounding or a bug, since which module, and the cause."""

"""The measures as compiled loops for a CPU (numba); the definitions are one folder up."""

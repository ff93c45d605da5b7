"""The measures as kernels for a GPU (Triton); the definitions are one folder up."""

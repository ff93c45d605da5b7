"""What lies on disk: the record of a cell, the folder of a sweep, and reading both back."""

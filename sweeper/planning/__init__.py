"""YAML and the command line become the ordered cells of a sweep, before any weight is loaded."""

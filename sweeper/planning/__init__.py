"""From YAML and the command line to the ordered cells of a sweep, before any weight is loaded."""

"""Things that can be put back, one at a time; each module lists one kind."""

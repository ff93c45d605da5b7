"""The two reports that sweeper grew out of: an application of it, and no part of it."""

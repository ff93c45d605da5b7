"""The version of the package, which also goes into every record."""

__version__ = "0.1.0"

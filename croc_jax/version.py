"""The version of this package, which its metadata read from here."""

__version__ = "0.1.0"

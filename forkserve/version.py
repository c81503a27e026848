"""The version of forkserve."""

__version__ = "0.1.0"

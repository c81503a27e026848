"""Measurements against other servers; see README.md."""

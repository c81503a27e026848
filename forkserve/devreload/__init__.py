"""Reloads for development: the workers are replaced when a file changes that the app has loaded."""

"""Reloads for development: when a file changes that the app has loaded, the workers are replaced."""

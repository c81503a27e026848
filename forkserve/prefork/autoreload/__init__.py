"""Autoreload: reloads for development, when a file changes that the app has loaded."""

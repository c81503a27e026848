"""Preload: the app is loaded once, in a mold, of which the workers are forked."""

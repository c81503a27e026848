"""Integrations with frameworks; each is loaded only by its framework."""

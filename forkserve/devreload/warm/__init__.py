"""Warm imports: a process keeps loaded what workers import from outside the project, so that a reload is fast."""

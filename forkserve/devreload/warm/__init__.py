"""Warm imports: a process that keeps loaded what workers import from outside the project, so that a reload is quick."""

"""Processes: a master, its workers, and what passes between them.

Nothing here knows HTTP. A worker may serve requests, echo bytes or consume a queue.
"""

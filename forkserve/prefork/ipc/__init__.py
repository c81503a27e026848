"""IPC: the messages between processes, their encoding, and pending answers."""

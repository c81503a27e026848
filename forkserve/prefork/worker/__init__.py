"""The worker: what runs in a process that the master has forked."""

"""Small complete apps to start forkserve with; each module says how."""

"""The unix socket behind `forkserve ctl`: its server in the master, and its client."""

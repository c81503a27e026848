"""The command line: `forkserve` and its sub-commands."""

"""What everything else may use: errors, files, logs, standard streams, user ids. It imports nothing else of forkserve."""

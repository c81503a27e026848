"""What operators see: metrics, health and status, served by a process beside the master (--admin)."""

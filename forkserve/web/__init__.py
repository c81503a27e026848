"""The HTTP worker, and what joins the HTTP service to a worker process: its loop, the hooks, shared addresses."""

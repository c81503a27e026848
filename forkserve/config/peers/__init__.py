"""The settings of gunicorn and uvicorn, and what becomes of each here. Pure data; `forkserve.config.translate` applies it."""

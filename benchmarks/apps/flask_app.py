"""The smallest Flask app."""

from __future__ import annotations

from flask import Flask

app = Flask(__name__)


@app.get("/")
def index() -> str:
    """Greet."""
    return "Hello, World!"

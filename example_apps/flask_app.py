"""Flask: a page, JSON, a form and an upload. WSGI.

Run it: `forkserve example_apps.flask_app:app --workers 4 --base-port 9000`.
"""

from __future__ import annotations

from typing import Any

from flask import Flask, request
from markupsafe import escape

app = Flask(__name__)
FORM = """<!doctype html><title>Flask</title><form method="post" action="/greet" enctype="multipart/form-data">
<input name="name"><input type="file" name="file"><button>Send</button></form>"""


@app.get("/")
def index() -> str:
    """Show a form."""
    return FORM


@app.post("/greet")
def greet() -> str:
    """Greet by the form's `name` and count the bytes of its file."""
    size = sum(len(upload.read()) for upload in request.files.values())
    return f"Hello, {escape(request.form.get('name', 'World'))}! {size} bytes came."


@app.get("/users/<int:number>")
def user(number: int) -> dict[str, Any]:
    """Answer JSON; a path without a number is a 404."""
    return {"id": number, "url": request.url, "args": request.args}

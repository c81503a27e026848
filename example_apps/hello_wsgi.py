"""The smallest WSGI app.

Run it: `forkserve example_apps.hello_wsgi:app --workers 4 --base-port 9000`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

BODY = b"Hello, World!"
HEADERS = [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))]


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer every request with the same greeting."""
    start_response("200 OK", HEADERS.copy())  # a copy: PEP 3333 lets the server change the list
    return [BODY]

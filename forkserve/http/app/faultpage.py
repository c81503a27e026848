"""The page that is served in a development server while the code on disk does not load. Only --reload makes one."""

from __future__ import annotations

import os
from base64 import b64encode
from functools import partial
from hashlib import sha256
from html import escape
from typing import TYPE_CHECKING

from forkserve.http.app.exchange import Exchange
from forkserve.http.app.faulttext import read_fault
from forkserve.http.app.local import is_local
from forkserve.http.message.response import ResponseHead, read_code

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.http.app.site import Site
    from forkserve.http.framing.writer import RequestHandler, UpgradeWriter
    from forkserve.http.message.fields import Fields
    from forkserve.http.message.http1 import Target

    NewExchange = Callable[[UpgradeWriter, Target, Fields], RequestHandler]

FIELD = "X-Forkserve-Fault"
"""Names the shown error in the page's head, and in requests of its script, which the application never gets."""
STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }
h1 { color: #d33; font-size: 1.4rem; overflow-wrap: anywhere }
pre { background: #8882; border-radius: 4px; font: 14px/1.5 ui-monospace, monospace; padding: .8rem; white-space: pre-wrap }
summary { cursor: pointer }
"""
# It waits for another error, or for the app. While the server restarts, requests may fail.
SCRIPT = """
const fault = document.body.dataset.fault
const look = async () => {
  try {
    const answer = await fetch("", { method: "HEAD", headers: { "X-Forkserve-Fault": fault }, cache: "no-store" })
    if (answer.headers.get("X-Forkserve-Fault") !== fault) return location.reload()
  } catch {}
  setTimeout(look, 400)
}
look()
"""


def policy_hash(text: str) -> str:
    """Return what a Content-Security-Policy names a script or style by."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


# Nothing but this script and style may run, whatever the text is.
POLICY = f"default-src 'none'; connect-src 'self'; script-src {policy_hash(SCRIPT)}; style-src {policy_hash(STYLE)}"
# A copy kept by a proxy or browser would still be shown when the fault is repaired.
HEADERS = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Cache-Control", "no-store"),
)
PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>The app does not load</title>
<style>{style}</style>{refresh}</head>
<body data-fault="{name}">
{content}
{script}</body>
</html>
"""
SHOWN = """<h1>{headline}</h1>
<p><strong>{place}</strong></p>
<pre>{source}</pre>
<p>The app does not load. This page reloads by itself when a save repairs it.</p>
<details open><summary>Traceback</summary>
<pre>{text}</pre></details>"""
HIDDEN = """<h1>The app does not load</h1>
<p>What is wrong is shown on the server's terminal, and here at http://localhost to browsers on the server's own machine.</p>"""


class FaultExchange(Exchange):
    """Answers a request with the page, for WSGI, ASGI and the handshake of a WebSocket alike."""

    __slots__ = ()

    shown = name = ""

    def start(self, body: bytes | None = None) -> None:
        """Answer when the body has been read: a client may not be able to stop sending it."""
        if body is None and self.fields.has_body:
            self.writer.want_body()
        else:
            self._answer()

    def body_data(self, data: bytes) -> None:
        """Drop the bytes."""

    def body_end(self) -> None:
        """Answer."""
        self._answer()

    def _answer(self) -> None:
        content = self.shown if is_local(self.writer.connection.endpoints, self.fields) else HIDDEN
        again = self.target.method == "GET"  # another request must not be repeated
        page = PAGE.format(
            style=STYLE,
            name=self.name,
            content=content,
            script=f"<script>{SCRIPT}</script>" if again else "",
            refresh='<noscript><meta http-equiv="refresh" content="2"></noscript>' if again else "",
        )
        self.head = ResponseHead(*read_code(500), str)
        self.head.add((*HEADERS, (FIELD, self.name)))
        self.write(page.encode("utf-8", "backslashreplace"), more=False)


class ProbeExchange(Exchange):
    """Answers the script of the page when there is an application again, which gets no such request."""

    __slots__ = ()

    def start(self, body: bytes | None = None) -> None:
        """Answer."""
        self.head = ResponseHead(*read_code(204), str)
        self.write(b"", more=False)


def fault_exchange(site: Site, text: str) -> Callable[..., FaultExchange]:
    """Return a function that makes exchanges of `site` which show a text. In a worker, in the directory of the project."""
    fault = read_fault(text, os.getcwd())
    values = {name: escape(value, quote=False) for name, value in {**fault._asdict(), "text": text}.items()}
    shown = SHOWN.format(**values).replace("<p><strong></strong></p>\n<pre></pre>\n", "")
    name = sha256("\n".join(fault).encode("utf-8", "backslashreplace")).hexdigest()[:16]
    return partial(type("FaultExchange", (FaultExchange,), {"__slots__": (), "shown": shown, "name": name}), site)


def probed(site: Site, new_exchange: NewExchange) -> NewExchange:
    """Return a function that answers requests of the page's script, and has `new_exchange` make the exchanges of all others."""

    def new(writer: UpgradeWriter, target: Target, fields: Fields) -> RequestHandler:
        if is_probe(target, fields):
            return ProbeExchange(site, writer, target, fields)
        return new_exchange(writer, target, fields)

    return new


def is_probe(target: Target, fields: Fields) -> bool:
    """Whether a request is one of the page's script."""
    return target.method == "HEAD" and not fields.has_body and fields.get(FIELD.lower().encode()) is not None

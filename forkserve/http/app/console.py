"""werkzeug's interactive debugger. Imported when the first request fails: it takes a while, and most saves cause no failure."""

from __future__ import annotations

import io
import os
from collections import deque
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from werkzeug.debug import DebuggedApplication
from werkzeug.wrappers import Response

from forkserve.http.app.site import SECRET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from forkserve.http.app.environ import Environ

KEPT = 16
"""Tracebacks whose frames are kept for the console. werkzeug keeps all, with everything that their variables refer to."""
_ERROR, _CONTEXTS = "forkserve.error", "forkserve.contexts"


class Console(DebuggedApplication):
    """Makes pages of errors that an application has raised, and answers the requests of these pages.

    It is not put in front of the application, whose responses it would change: an error is raised once more for it.

    Args:
        app: The application.
    """

    def __init__(self, app: Callable[..., Any]) -> None:
        super().__init__(app, evalex=True, console_path="")
        self.needs_pin = self.pin is not None
        if self.pin is not None and self.pin.replace("-", "") != os.environ.get("WERKZEUG_DEBUG_PIN", "").replace("-", ""):
            # werkzeug derives PIN and cookie from what every user of the machine can read.
            digits, cookie = (sha256(purpose + SECRET).hexdigest() for purpose in (b"PIN", b"cookie"))
            self.pin = "{:03}-{:03}-{:03}".format(*(int(digits[start : start + 15], 16) % 1000 for start in (0, 15, 30)))
            self._pin_cookie = f"__wzd{cookie[:20]}"
        self.app = _raise_again
        self._pages: deque[list[int]] = deque()

    def check_host_trust(self, environ: Environ) -> bool:
        """Return true."""
        return True

    def takes(self, query: bytes) -> bool:
        """Return whether a query is of a page that this process has made, or asks for what all pages show."""
        if b"__debugger__=yes" not in query:
            return False
        values = parse_qs(query.decode("latin-1"))
        return values.get("s") == [self.secret] or values.get("cmd") == ["resource"]

    def page(self, environ: Environ, error: Exception, contexts: Iterable[AbstractContextManager[Any]]) -> bytes:
        """Return the page of an error.

        Args:
            environ: That of the request.
            error: What was raised.
            contexts: What the application wants entered around each command: Flask's contexts of the request.

        Raises:
            Exception: werkzeug cannot show the error, as one whose message is not Unicode.
        """
        known, trace = set(self.frames), error.__traceback__
        again = {**environ, "REQUEST_METHOD": "GET", "wsgi.errors": io.StringIO(), _ERROR: error, _CONTEXTS: contexts}
        try:
            return b"".join(self.debug_application(again, lambda *_: lambda _: None))
        finally:
            # An object that is raised for each request would collect werkzeug's frames.
            BaseException.with_traceback(error, trace)
            self._pages.append([number for number in self.frames if number not in known])
            if len(self._pages) > KEPT:
                for number in self._pages.popleft():
                    self.frames.pop(number, None)
                    self.frame_contexts.pop(number, None)


def _raise_again(environ: Environ, start_response: Any) -> Iterable[bytes]:
    __traceback_hide__ = True  # for werkzeug
    error = environ.get(_ERROR)
    if error is None:
        response = Response("The console is locked, or no longer knows this traceback: reload the page.", status=404)
        return response(environ, start_response)
    for context in environ[_CONTEXTS]:
        environ["werkzeug.debug.preserve_context"](context)
    raise error

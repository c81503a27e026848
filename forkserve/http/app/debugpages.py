"""Tracebacks in the browser: the answers to requests whose application has raised an exception. Only --debug makes them.

WSGI applications get werkzeug's debugger, with its console, if there is one worker: the frames are in its memory. All others get
a page of ours. `is_direct` judges a request; one that it refuses has the exchange that it would have without --debug.
"""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any

from forkserve.http.app.asgi import ASGIExchange
from forkserve.http.app.exchange import Exchange
from forkserve.http.app.local import is_direct
from forkserve.http.app.threads import ThreadedExchange
from forkserve.http.app.tracebackpage import CLOSED, HEADERS, HTML, as_html, as_text, is_long, without_own_frames
from forkserve.http.app.wsgi import WSGIExchange
from forkserve.http.message.errors import ClientGoneError, ResponseError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from forkserve.http.app.asgi import Message
    from forkserve.http.app.console import Console
    from forkserve.http.app.environ import Environ
    from forkserve.http.app.site import Site
    from forkserve.http.framing.writer import RequestHandler, UpgradeWriter
    from forkserve.http.message.fields import Fields
    from forkserve.http.message.http1 import Target

    NewExchange = Callable[[UpgradeWriter, Target, Fields], RequestHandler]
    Page = tuple[tuple[tuple[str, str], ...], bytes]

STARLETTES_500 = b"Internal Server Error"
"""The body with which Starlette and FastAPI answer for an exception, before they raise it to the server."""
_CONSOLE_HEADERS = (HTML, ("Content-Security-Policy", "frame-ancestors 'none'"), *CLOSED)
_TEXT_HEADERS = (("Content-Type", "text/plain; charset=utf-8"), *CLOSED)


class DebugPages:
    """Makes the pages. On the loop's thread.

    Args:
        site: That of the application.
    """

    def __init__(self, site: Site) -> None:
        settings = site.settings
        self._site = site
        self._has_console = site.interface == "wsgi" and max(settings.workers, settings.max_workers) == 1
        self._console: Console | None = None

    def in_front_of(self, new_exchange: NewExchange) -> NewExchange:
        """Return a function that makes the exchanges that show tracebacks, and has `new_exchange` make all others."""
        site = self._site
        usual: type[Exchange] = ThreadedExchange if site.settings.threads else WSGIExchange
        shows: type[_ASGI | _Inline | _Threaded] = _Threaded if site.settings.threads else _Inline
        if site.interface == "asgi":
            shows = _ASGI

        def new(writer: UpgradeWriter, target: Target, fields: Fields) -> RequestHandler:
            if fields.upgrade == b"websocket" or not is_direct(writer.connection.endpoints, fields):
                return new_exchange(writer, target, fields)
            if self._console is not None and self._console.takes(target.query):
                console_site = copy.copy(site)
                console_site.app = self._console
                console_site.on_answer = console_site.on_refused = None  # the PIN and the page's secret must not get into a log
                return usual(console_site, writer, target, fields)
            exchange = shows(site, writer, target, fields)
            exchange.pages = self
            exchange.contexts = []
            return exchange

        return new

    def page(self, exchange: _Shows, error: BaseException | None, what: str) -> Page:
        """Return headers and body of the answer to a request.

        Args:
            exchange: The request.
            error: What the application raised; None if it raised nothing.
            what: What happened.
        """
        folder = os.getcwd()
        if error is None:
            error = RuntimeError(what)
        without_own_frames(error)
        if b"text/html" not in (exchange.fields.get(b"accept") or b"").lower():
            return _TEXT_HEADERS, _encoded(as_text(error, folder))
        if error.__traceback__ is not None and isinstance(error, Exception) and (console := self._open_console()):
            try:
                if not is_long(error):  # werkzeug's page has all of the text, several times
                    return _CONSOLE_HEADERS, console.page(exchange.scope_or_environ or {}, error, exchange.contexts)
            except Exception as why:  # noqa: BLE001 - werkzeug's, or of the application's own objects
                self._site.log.warning("%s: werkzeug's debugger fails: %s: %s", exchange.describe(), type(why).__name__, why)
        return HEADERS, _encoded(as_html(error, exchange.target.line.decode("ascii"), folder))

    def _open_console(self) -> Console | None:
        if self._console is None and self._has_console:
            self._has_console = False
            try:
                from forkserve.http.app.console import Console  # noqa: PLC0415 - see there

                console = Console(self._site.app)
            except (ImportError, OSError) as error:  # werkzeug counts wrong PINs in shared memory, which a container may lack
                self._site.log.warning("tracebacks in the browser have no console: %s", error)
                return None
            if console.needs_pin:
                self._site.log.info("Debugger PIN: %s (it unlocks the console of tracebacks in the browser)", console.pin)
                self._console = console
            else:
                self._site.log.warning("tracebacks in the browser have no console, which needs a PIN: WERKZEUG_DEBUG_PIN=off")
        return self._console


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


class _Shows(Exchange):
    """An exchange that answers with a page where others answer a plain 500."""

    __slots__ = ()

    pages: DebugPages
    contexts: list[AbstractContextManager[Any]]

    def failure_page(self, error: BaseException | None, what: str) -> Page:
        """Return the page."""
        try:
            return self.pages.page(self, error, what)
        except Exception:  # an exception of the application may raise others when it is shown
            self.site.log.exception("%s: no page can be made of the exception", self.describe())
            return super().failure_page(error, what)


class _ShowsWSGI(_Shows):
    """The same for WSGI, where commands of the console may need the application's contexts."""

    __slots__ = ()

    def environ(self) -> Environ:
        """Return what the application is called with."""
        environ: Environ = super().environ()  # type: ignore[misc]  # that of WSGICall
        environ["werkzeug.debug.preserve_context"] = self.contexts.append
        return environ


class _Inline(_ShowsWSGI, WSGIExchange):
    """A call on the loop's thread."""

    __slots__ = ("contexts", "pages")


class _Threaded(_ShowsWSGI, ThreadedExchange):
    """A call in a thread."""

    __slots__ = ("contexts", "pages")


class _ASGI(_Shows, ASGIExchange):
    """A call of an ASGI application.

    The answer of Starlette and FastAPI to an exception is held back for the rest of this turn of the loop, in which they raise
    the exception: the page takes its place.
    """

    __slots__ = ("_held", "contexts", "pages")

    def start(self, body: bytes | None = None) -> None:
        """Call the application."""
        self._held: bytes | None = None
        super().start(body)

    async def send(self, message: Message) -> None:
        """Take the start of the response, then its body (ASGI)."""
        if self._held is not None:
            self._release()
        if self._is_starlettes_500(message):
            self._held = message["body"]
            self.site.loop.call_soon(self._release)
            return
        await super().send(message)

    def _is_starlettes_500(self, message: Message) -> bool:
        return (
            message.get("body") == STARLETTES_500
            and message["type"] == "http.response.body"
            and not message.get("more_body", False)
            and self.head is not None
            and self.head.code == 500
            and not (self.started or self.complete or self.gone)
        )

    def _release(self) -> None:
        body, self._held = self._held, None
        if body is None or self.complete:
            return
        try:
            self.answer(body)
        except ClientGoneError:
            return
        except ResponseError as error:
            self.fail(error, "the answer cannot be sent")

    def _ended_early(self) -> None:
        if self._held is None:
            super()._ended_early()
        else:
            self._release()

    def fail(self, error: BaseException | None, what: str) -> None:
        """Handle an application that did not answer as it should."""
        if self._held is not None and error is None:  # it was cancelled after its answer
            self._release()
            return
        self._held = None
        super().fail(error, what)

"""Files of --static, served in front of the application, whichever interface that has.

werkzeug makes the response: type, ETag, ranges and conditions. The file is sent as any WSGI application's is: by the system, in
pieces, so that no large file holds the loop. What is no file goes to the application.
"""

from __future__ import annotations

import copy
import os
import re
from typing import TYPE_CHECKING, Any, Final

from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.security import safe_join
from werkzeug.utils import send_file

from forkserve.http.app.environ import environ_template, put_ends
from forkserve.http.app.turns import Turns
from forkserve.http.app.wsgi import WSGIExchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from forkserve.http.app.calls import Call
    from forkserve.http.app.environ import Environ
    from forkserve.http.app.site import Site
    from forkserve.http.framing.writer import RequestHandler, UpgradeWriter
    from forkserve.http.message.fields import Fields
    from forkserve.http.message.http1 import Target

    NewExchange = Callable[[UpgradeWriter, Target, Fields], RequestHandler]

_NO_NAME: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""What a file's name in a field of the response cannot hold: control characters, and bytes that are not UTF-8."""


class StaticFiles:
    """Finds files. On the loop's thread.

    Args:
        site: That of the application; its settings have the directories.
    """

    def __init__(self, site: Site) -> None:
        self._mounts = [(url.rstrip("/") + "/", folder) for url, folder in site.settings.static]
        self._root_path = site.settings.root_path
        self.site = copy.copy(site)
        self.site.app, self.site.interface = _send, "wsgi"
        self.site.turns = _NoTurns()

    def in_front_of(self, new_exchange: NewExchange) -> NewExchange:
        """Return a function that makes the exchanges of files, and has `new_exchange` make all others."""

        def new(writer: UpgradeWriter, target: Target, fields: Fields) -> RequestHandler:
            file = self._find(target) if target.method in ("GET", "HEAD") and not fields.upgrade else None
            if file is None:
                return new_exchange(writer, target, fields)
            exchange = _StaticExchange(self.site, writer, target, fields)
            exchange.file = file
            return exchange

        return new

    def _find(self, target: Target) -> str | None:
        """Return the file that a request is about; None if there is none."""
        path = os.fsdecode(target.path)
        if self._root_path and path.startswith(self._root_path + "/"):
            path = path[len(self._root_path) :]
        for url, folder in self._mounts:
            if path.startswith(url) and not path.endswith("/"):
                file = safe_join(folder, path[len(url) :])
                if file is not None and not _NO_NAME.search(file) and os.path.isfile(file):
                    return file
        return None


def _send(environ: Environ, start_response: Any) -> Iterable[bytes]:
    response: Any
    try:
        response = send_file(environ["forkserve.file"], environ)
    except HTTPException as error:  # no such range
        response = error
    except OSError:  # it was removed just now, or may not be read
        response = NotFound()
    answer: Iterable[bytes] = response(environ, start_response)
    return answer


class _StaticExchange(WSGIExchange):
    """One request for a file."""

    __slots__ = ("file",)

    file: str

    def environ(self) -> Environ:
        """Return what `_send` is called with. The connection may keep an ASGI scope as its template."""
        connection = self.writer.connection
        environ = environ_template(self.site, connection.endpoints, self.fields.version)
        self.target.put_line(environ)
        self.fields.put_fields(environ)
        put_ends(environ, self.site, connection.endpoints, self.fields)
        environ["forkserve.file"] = self.file
        self.scope_or_environ = environ
        return environ


class _NoTurns(Turns):
    """Lets every call begin at once: a file whose client is slow must not hold the application, or other files."""

    __slots__ = ()

    def __init__(self) -> None:
        """Nothing waits here."""

    def take(self, call: Call, now: int) -> None:
        call.call()

    def leave(self, now: int | None = None) -> None:
        """Do nothing."""

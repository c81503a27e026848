"""The environ of PEP 3333, except for the keys that the request's head and body contribute."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from forkserve.http.app.filewrapper import FileWrapper

if TYPE_CHECKING:
    from forkserve.http.app.site import Site
    from forkserve.http.framing.endpoints import Endpoints
    from forkserve.http.message.fields import Fields

Environ = dict[str, Any]


def put_ends(environ: Environ, site: Site, endpoints: Endpoints, fields: Fields) -> None:
    """Set what the head says about the two ends of the connection. Needed only for forwarded requests and on unix sockets."""
    client, scheme = endpoints.seen_through(fields, site.trusted)
    environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = (client[0], str(client[1])) if client else ("", "")
    environ["wsgi.url_scheme"] = scheme
    if endpoints.is_unix:  # a unix socket has no name that a client could use
        host, colon, port = (fields.host or b"localhost").decode("ascii").rpartition(":")
        if not colon or not port.isdigit():
            host, port = (host + colon + port), ""
        environ["SERVER_NAME"] = host or "localhost"
        environ["SERVER_PORT"] = port or ("443" if scheme == "https" else "80")


def shared_environ(site: Site, endpoints: Endpoints, version: str) -> tuple[Environ, str, str]:
    """Return what the environs of a connection begin with: a template, and address and port of the client to put into its copies.

    Connections with the same address of ours share the template: a thousand of them would not stay in the processor's cache.
    """
    template = site.template((version, endpoints.scheme, endpoints.server), lambda: environ_template(site, endpoints, version))
    client = endpoints.client
    return (template, client[0], str(client[1])) if client else (template, "", "")


def environ_template(site: Site, endpoints: Endpoints, version: str) -> Environ:
    """Return the part of the environ that follows from the connection and the HTTP version."""
    client, scheme = endpoints.client, endpoints.scheme
    host, port = endpoints.server or ("", None)
    environ: Environ = {
        "SERVER_SOFTWARE": "forkserve",
        "SERVER_PROTOCOL": "HTTP/" + version,
        "SERVER_NAME": host or "localhost",
        "SERVER_PORT": str(port or ("443" if scheme == "https" else "80")),
        "SCRIPT_NAME": site.settings.root_path,
        "REMOTE_ADDR": client[0] if client else "",
        "REMOTE_PORT": str(client[1]) if client else "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": bool(site.settings.threads),
        "wsgi.multiprocess": site.settings.workers > 1,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "wsgi.file_wrapper": FileWrapper,
        # Keys that are filled in later: to copy a dict is cheap, to let it grow is not.
        **dict.fromkeys(("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "REQUEST_URI", "RAW_URI", "wsgi.input")),
    }
    # Room for the fields of the head, for the same reason. A dict of 21 keys is full; with one more it has room for 42, and it
    # keeps that room, as its copies do.
    environ["room"] = None
    del environ["room"]
    return environ

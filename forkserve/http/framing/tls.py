"""The TLS context of a server, from the settings.

The master makes it, once for each generation of workers, before they are forked. So a worker can be respawned though only root
reads the key; a reload fails if key and certificate do not match, as while one of the two is replaced; and all workers accept
each other's session tickets, as the key for tickets is in the context. If the files are the same, a reload keeps the context,
and tickets outlive it.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from forkserve.base.certificates import expiry
from forkserve.base.errors import ConfigError

if TYPE_CHECKING:
    from forkserve.config.settings import Settings

MADE_FROM: Final = ("certfile", "keyfile", "keyfile_password", "ca_certs", "cert_reqs", "ciphers")
"""The settings that a context is made from."""
_FILES: Final = ("certfile", "keyfile", "ca_certs")
_ONCE: Final = "read once"


@dataclass(frozen=True, slots=True)
class TLS:
    """A context, with the settings and the digests of the files that it was made from.

    Attributes:
        expires: When its certificate expires, in unix time; None if that is not known.
    """

    context: ssl.SSLContext
    made_from: tuple[object, ...]
    expires: float | None


def inherit(settings: Settings, last: object) -> TLS | None:
    """Make the context of a generation, or keep the last one if nothing has changed; None without a certificate.

    A file that is not regular, such as a pipe (``--certfile <(...)``), is read once, at the start.

    Args:
        settings: The settings.
        last: The return value for the generation before; anything else at the start.

    Raises:
        ConfigError: A file cannot be used; the message names it.
    """
    if settings.certfile is None:
        return None
    # Digests first: a file that changes before it is loaded is loaded again by the next reload, so no change is missed.
    contents = {name: _content(getattr(settings, name)) for name in _FILES}
    made_from = (*(getattr(settings, name) for name in MADE_FROM), *contents.values())
    if isinstance(last, TLS):
        if made_from == last.made_from:
            return last
        for name in _FILES:
            if contents[name] == _ONCE:
                path, option = getattr(settings, name), name.replace("_", "-")
                raise ConfigError(f"--{option} {path} is no regular file, which is read at the start only: restart the server")
    context = make_context(settings)
    return None if context is None else TLS(context, made_from, _expires(settings.certfile, contents["certfile"]))


def _expires(path: str, content: str | None) -> float | None:
    """Return when the certificate in a file expires; None if it cannot be read, or not twice."""
    if content in (None, _ONCE):
        return None
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return expiry(file.read())
    except OSError:
        return None


def _content(path: str | None) -> str | None:
    """Return a digest of a file; None if it cannot be read, as loading it gives a better error."""
    if path is None:
        return None
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return _ONCE
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return None


def make_context(settings: Settings) -> ssl.SSLContext | None:
    """A context for ``certfile``, ``keyfile``, ``ca_certs``, ``cert_reqs`` and ``ciphers``; None without a certificate.

    TLS 1.2 or newer; ALPN offers http/1.1, which WebSocket clients want to see as well.

    Raises:
        ConfigError: One of them cannot be used; the message names it.
    """
    if settings.certfile is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with _naming(f"--certfile {settings.certfile}" + (f" --keyfile {settings.keyfile}" if settings.keyfile else "")):
        # If a key needs a password and there is none, that must be an error, not a prompt on the terminal.
        context.load_cert_chain(settings.certfile, settings.keyfile, settings.keyfile_password or (lambda: ""))
    if settings.ca_certs is not None:
        with _naming(f"--ca-certs {settings.ca_certs}"):
            context.load_verify_locations(settings.ca_certs)
    context.verify_mode = ssl.VerifyMode(settings.cert_reqs)
    if settings.ciphers is not None:
        with _naming(f"--ciphers {settings.ciphers}"):
            context.set_ciphers(settings.ciphers)
    context.set_alpn_protocols(["http/1.1"])
    return context


@contextmanager
def _naming(options: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error.args[0]
        raise ConfigError(f"TLS cannot be set up with {options}: {str(reason).rstrip('.')}") from error

"""The TLS context of a server, from the settings."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from forkserve.errors import ConfigError

if TYPE_CHECKING:
    from forkserve.settings import Settings


def make_context(settings: Settings) -> ssl.SSLContext | None:
    """A context for ``certfile``, ``keyfile``, ``ca_certs``, ``cert_reqs`` and ``ciphers``; None without a certificate.

    TLS 1.2 or newer; ALPN offers http/1.1, which WebSocket clients want to see as well.

    Raises:
        ConfigError: One of them cannot be used; names it.
    """
    if settings.certfile is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with _naming(f"--certfile {settings.certfile}" + (f" --keyfile {settings.keyfile}" if settings.keyfile else "")):
        # Without a password a key that needs one must be an error, not a prompt on the terminal.
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

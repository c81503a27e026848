"""The TLS context of a server, from the settings."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forkserve.settings import Settings


def make_context(settings: Settings) -> ssl.SSLContext | None:
    """A context for ``certfile``, ``keyfile``, ``ca_certs``, ``cert_reqs`` and ``ciphers``; None without a certificate.

    TLS 1.2 or newer; ALPN offers http/1.1, which WebSocket clients want to see as well.

    Raises:
        OSError: A file cannot be read, or holds no certificate or key (``ssl.SSLError`` is an ``OSError``).
    """
    if settings.certfile is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Without a password a key that needs one must be an error, not a prompt on the terminal.
    context.load_cert_chain(settings.certfile, settings.keyfile, settings.keyfile_password or (lambda: ""))
    if settings.ca_certs is not None:
        context.load_verify_locations(settings.ca_certs)
    context.verify_mode = ssl.VerifyMode(settings.cert_reqs)
    if settings.ciphers is not None:
        context.set_ciphers(settings.ciphers)
    context.set_alpn_protocols(["http/1.1"])
    return context

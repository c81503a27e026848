"""Certificates for tests, made by the program openssl."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Pair(NamedTuple):
    """A certificate and its key."""

    cert: str
    key: str


def openssl(*arguments: str, cwd: Path) -> None:
    """Run the program openssl."""
    subprocess.run(["openssl", *arguments], cwd=cwd, check=True, capture_output=True, timeout=60)


class Authority:
    """Two certificate authorities, and the certificates that the first one has signed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = self._own("ca")
        self.stranger = self._own("stranger")
        self.server = self.another("server")
        self.client = self._signed("client", "extendedKeyUsage=clientAuth")

    def another(self, name: str) -> Pair:
        """Make a certificate for this machine with its own key."""
        return self._signed(name, "subjectAltName=DNS:localhost,IP:127.0.0.1")

    def _own(self, name: str) -> Pair:
        usage = ("-addext", "keyUsage=critical,keyCertSign")
        files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
        openssl("req", "-x509", *CURVE, "-days", "2", "-subj", f"/CN={name}", *usage, *files, cwd=self.directory)
        return self._pair(name)

    def _signed(self, name: str, extension: str) -> Pair:
        (self.directory / f"{name}.ext").write_text(f"{extension}\nauthorityKeyIdentifier=keyid\n")
        files = ("-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl("req", *CURVE, "-subj", f"/CN={name}", *files, cwd=self.directory)
        signs = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        files = ("-in", f"{name}.csr", "-extfile", f"{name}.ext", "-out", f"{name}.pem")
        openssl("x509", "-req", *signs, *files, cwd=self.directory)
        return self._pair(name)

    def _pair(self, name: str) -> Pair:
        return Pair(str(self.directory / f"{name}.pem"), str(self.directory / f"{name}.key"))

    def trust(self, own: Pair | None = None, *alpn: str) -> ssl.SSLContext:
        """Return a client's context that trusts the first authority and may present a certificate."""
        context = ssl.create_default_context(cafile=self.ca.cert)
        if own is not None:
            context.load_cert_chain(*own)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    def trust_in_two_threads(self) -> ssl.SSLContext:
        """Return a client's context for connections that one thread reads and another writes (the sync client of websockets).

        OpenSSL does not allow that. With TLS 1.3 the server's session tickets come after the handshake; a request that is written
        while a ticket is read may be lost: no byte of it is sent. With TLS 1.2 they come within the handshake.
        """
        context = self.trust()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context

"""Certificates: when one expires. The standard library cannot say that of a certificate that it does not verify (DER: X.690)."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from typing import Final

_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"
_VERSION: Final = 0xA0  # the tag of a field that may be missing
_TIMES: Final = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}  # UTCTime and GeneralizedTime, as RFC 5280 restricts them


def expiry(pem: str) -> float | None:
    """Return when the first certificate of a PEM file expires, in unix time; None if the text has none that can be read."""
    _, begin, rest = pem.partition(_BEGIN)
    body, end, _ = rest.partition(_END)
    try:
        # Certificate: SEQUENCE { tbsCertificate: SEQUENCE { [0] version, serial, signature, issuer, validity, ... } ... }
        certificate = _read(ssl.PEM_cert_to_DER_cert(begin + body + end), 0)[1]
        fields, at = _read(certificate, 0)[1], 0
        if fields[0] == _VERSION:
            at = _read(fields, at)[2]
        for _skipped in ("serial", "signature", "issuer"):
            at = _read(fields, at)[2]
        kind, validity, _ = _read(fields, at)
        kind, time, _ = _read(validity, _read(validity, 0)[2])  # notBefore, notAfter
        found = datetime.strptime(time.decode("ascii"), _TIMES[kind]).replace(tzinfo=UTC)
    except (ValueError, LookupError):
        return None
    if kind == 0x17 and found.year >= 2050:  # RFC 5280: two digits are of 1950 to 2049
        found = found.replace(year=found.year - 100)
    return found.timestamp()


def _read(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Return the tag and the content of the value at an offset, and the offset behind it. Raises IndexError or ValueError."""
    tag, size, at = data[at], data[at + 1], at + 2
    if size & 0x80:
        count = size & 0x7F
        size, at = int.from_bytes(data[at : at + count], "big"), at + count
    if at + size > len(data):
        raise ValueError("it ends too early")
    return tag, data[at : at + size], at + size

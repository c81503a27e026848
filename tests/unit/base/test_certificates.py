"""When a certificate expires."""

from __future__ import annotations

import ssl
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from forkserve.base.certificates import expiry


def make(directory: Path, *options: str) -> str:
    """Make a certificate with the program openssl; return its text."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "k.pem", "-out", "c.pem")
    words = ("openssl", "req", "-x509", *key, "-subj", "/CN=a", *options)
    subprocess.run(words, cwd=directory, check=True, capture_output=True, timeout=60)
    return (directory / "c.pem").read_text()


@pytest.mark.parametrize("days", ["3", "20000"], ids=["UTCTime", "GeneralizedTime"])
def test_it_is_what_openssl_says(tmp_path: Path, days: str) -> None:
    text = make(tmp_path, "-days", days)
    words = ("openssl", "x509", "-in", "c.pem", "-noout", "-enddate")
    said = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60).stdout
    expected = datetime.strptime(said.strip().removeprefix("notAfter="), "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC)
    assert expiry(text) == expected.timestamp()
    key = (tmp_path / "k.pem").read_text()
    other = make(tmp_path, "-days", "9")
    assert expiry(f"{key}\ntext\n{text}{other}") == expected.timestamp()  # the first one is the server's


@pytest.mark.parametrize("text", ["", "no certificate", ssl.DER_cert_to_PEM_cert(b""), ssl.DER_cert_to_PEM_cert(b"\x30\x82\xff")])
def test_what_is_no_certificate_has_no_end(text: str) -> None:
    assert expiry(text) is None


def test_a_certificate_that_is_cut_has_no_end(tmp_path: Path) -> None:
    data = ssl.PEM_cert_to_DER_cert(make(tmp_path, "-days", "3"))
    for size in range(len(data)):
        assert expiry(ssl.DER_cert_to_PEM_cert(data[:size])) is None

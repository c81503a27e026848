"""Apps for tests with a front end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

PIECE = bytes(range(256)) * 256


def download(environ, start_response):
    """WSGI: the number of 64 KiB pieces that the query names, with a length or (path /chunked) without."""
    number = int(environ["QUERY_STRING"])
    headers = [("Content-Type", "application/octet-stream")]
    if environ["PATH_INFO"] != "/chunked":
        headers.append(("Content-Length", str(number * len(PIECE))))
    start_response("200 OK", headers)

    def pieces() -> Iterator[bytes]:
        for _ in range(number):
            yield PIECE

    return pieces()


def count(environ, start_response):
    """WSGI: the size of the request body."""
    number = 0
    while data := environ["wsgi.input"].read(1 << 16):
        number += len(data)
    body = str(number).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def gated(environ, start_response):
    """WSGI: the id of the worker; /wait waits until the file that the query names exists."""
    if environ["PATH_INFO"] == "/wait":
        gate = Path(environ["QUERY_STRING"])
        gate.with_suffix(".came").touch()
        while not gate.exists():
            time.sleep(0.01)
    body = os.environ["FORKSERVE_WORKER_ID"].encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]

"""Apps that a front end stands before."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

PIECE = bytes(range(256)) * 256


def download(environ, start_response):
    """WSGI: as many pieces of 64 KiB as the query says, with a length or (path /chunked) without."""
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
    """WSGI: the number of bytes that came, and of the reads that it took."""
    number = 0
    while data := environ["wsgi.input"].read(1 << 16):
        number += len(data)
    body = str(number).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def gated(environ, start_response):
    """WSGI: the worker that answers; for /wait not before a file is there, whose path the query is."""
    if environ["PATH_INFO"] == "/wait":
        gate = Path(environ["QUERY_STRING"])
        gate.with_suffix(".came").touch()
        while not gate.exists():
            time.sleep(0.01)
    body = os.environ["FORKSERVE_WORKER_ID"].encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]

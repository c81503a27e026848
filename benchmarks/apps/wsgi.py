"""WSGI apps, one for each kind of work."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIEnvironment

MEBIBYTE = bytes(1 << 20)
BLOCK = 1 << 16
CHUNKS, CHUNK = 1000, b"x" * 64
SLEEP = 0.001


def _start(start_response: StartResponse, length: int) -> None:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(length))])


def count(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Read the body in blocks and answer with its length."""
    length = 0
    while block := environ["wsgi.input"].read(BLOCK):
        length += len(block)
    body = b"%d" % length
    _start(start_response, len(body))
    return [body]


def mebibyte(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with 1 MiB from memory."""
    _start(start_response, len(MEBIBYTE))
    return [MEBIBYTE]


def file(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with the file that BENCHMARK_FILE names, by the server's `wsgi.file_wrapper` if it has one."""
    path = Path(os.environ["BENCHMARK_FILE"])
    _start(start_response, path.stat().st_size)
    opened = path.open("rb")
    if "wsgi.file_wrapper" in environ:
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](opened, BLOCK)
        return wrapped
    return _blocks(opened)


def _blocks(opened: BinaryIO) -> Iterator[bytes]:
    with opened:
        while block := opened.read(BLOCK):
            yield block


def stream(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """Answer with 1,000 chunks of 64 bytes, without a Content-Length."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    for _ in range(CHUNKS):
        yield CHUNK


def sleep(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Wait for a millisecond, as for a database, and answer."""
    time.sleep(SLEEP)
    _start(start_response, 2)
    return [b"ok"]

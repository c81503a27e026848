"""A WSGI app with five faults. benchmarks/incidents.py brings each of them about; incident.ru is the same app in Ruby."""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

FOLDER = os.environ.get("INCIDENT_FOLDER", ".")
FAST, SLOW = 0.02, 0.2  # seconds that the dependency takes
MOST_STUCK = 120  # seconds: the app ends by itself in any case
LEAK = 5 << 20  # bytes
BAD = os.path.exists(f"{FOLDER}/bad")  # the release
_never = threading.Lock()
_never.acquire()
_kept: list[bytes] = []
_turns = itertools.count()


def ask_dependency() -> None:
    """Wait as long as the dependency takes."""
    time.sleep(SLOW if os.path.exists(f"{FOLDER}/slow") else FAST)


def wait_for_lock() -> None:
    """Wait for what nobody releases."""
    _never.acquire(timeout=MOST_STUCK)


def resize_image() -> None:
    """Read from an address that nothing has, as a fault in native code does."""
    ctypes.string_at(8)


def fill_basket() -> None:
    """Keep memory for ever."""
    _kept.append(b"x" * LEAK)


def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """Answer; the path decides what goes wrong."""
    path = environ["PATH_INFO"]
    if path == "/report":
        wait_for_lock()
    elif path == "/thumbnail":
        resize_image()
    elif path == "/basket":
        fill_basket()
    else:
        ask_dependency()
    status = "500 Internal Server Error" if BAD and next(_turns) % 2 else "200 OK"
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", "3")])
    return [b"ok\n"]

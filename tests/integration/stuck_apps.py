"""Apps that get stuck."""

from __future__ import annotations

import asyncio
import faulthandler
import itertools
import os
import re
import threading
import time
from collections import deque
from pathlib import Path

from forkserve.prefork.worker.stacks import NATIVE

BUSY: list[threading.Thread] = []


def _note(text: str) -> None:
    """Append a line to the notes."""
    with Path(os.environ["NOTES"]).open("a") as file:
        file.write(text + "\n")


async def app(scope, receive, send):
    """ASGI: get stuck as the path says; a WebSocket is accepted and waits."""
    if scope["type"] == "lifespan":
        raise NotImplementedError
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        return
    _note(scope["path"])
    match scope["path"].split("/")[1]:
        case "quick":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})
        case "sleep":
            time.sleep(600)
        case "lock":
            threading.Event().wait()
        case "loop":
            while True:
                pass
        case "native":
            # Long enough to be noted: no Python code runs from here on.
            await asyncio.sleep(2.5)
            deque(itertools.repeat(0), maxlen=0)
        case "wait":
            await asyncio.Event().wait()
        case "background":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})
            await asyncio.sleep(0)
            time.sleep(600)


def wsgi(environ, start_response):
    """WSGI: get stuck as the path says, by default in a wait without end."""
    _note(environ["PATH_INFO"])
    match environ["PATH_INFO"]:
        case "/quick":
            start_response("200 OK", [("Content-Length", "0")])
            return []
        case "/native":
            hold_the_interpreter()
        case "/regex":
            re.match("(a+)+$", "a" * 60 + "b")
        case "/unanswered":
            faulthandler.unregister(NATIVE)  # the default action ends the process, as a crash in the handler would
            hold_the_interpreter()
        case "/sleep":
            time.sleep(600)
        case "/forks":
            _fork_two()
            start_response("200 OK", [])
            return []
    return wait_for_ever()


def hold_the_interpreter():
    """Run native code without end; no Python code runs meanwhile."""
    deque(itertools.repeat(0), maxlen=0)


def _fork_two():
    """Start a program, and fork a process that waits; record their pids."""
    started = os.posix_spawn("/bin/sleep", ["sleep", "600"], os.environ)
    forked = os.fork()
    if forked == 0:
        while True:
            time.sleep(600)
    _note(f"{started} {forked}")


def busy(environ, start_response):
    """WSGI: respond, while threads call and return without end."""
    if not BUSY:
        for work in (_recurse, _generate, _raise, _start):
            BUSY.append(threading.Thread(target=_for_ever, args=(work,), name=f"busy{work.__name__}", daemon=True))
            BUSY[-1].start()
    start_response("200 OK", [])
    return [b'{"version": "1", "generation": "1", "pid": 1}']


def _for_ever(work):
    while True:
        work(40)


def _recurse(depth):
    return depth and 1 + _recurse(depth - 1)


def _start(depth):
    threads = [threading.Thread(target=_recurse, args=(depth,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _generate(depth):
    return sum(_numbers(depth))


def _numbers(depth):
    if depth:
        yield depth
        yield from _numbers(depth - 1)


def _raise(depth):
    try:
        return _raise(depth - 1) if depth else 1 / 0
    except ZeroDivisionError:
        return depth


def wait_for_ever():
    """Wait without end; the stacks show this function."""
    threading.Event().wait()

"""Free ports for servers of tests: each test process has its own range."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket

FIRST, EACH = 10_000, 1_400
"""Below the ports that the system assigns to clients and to port 0 (32768 and above): it could assign one before the test binds it."""

_process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw15").removeprefix("gw")) % 16
_start = random.Random().randrange(EACH)  # another run of the tests begins at another port
_next = itertools.count(_start)


def free_ports(count: int = 1) -> int:
    """Return the first of `count` consecutive free ports. A port is returned again only after all others."""
    for _ in range(EACH):
        offset = next(_next) % EACH
        if offset + count > EACH:
            continue
        first = FIRST + _process * EACH + offset
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                probe = stack.enter_context(socket.socket())
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("", port))
            for _ in range(count - 1):
                next(_next)
            return first
    raise AssertionError("no free ports")

"""The length of an accept queue, and its limit."""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path

import pytest

from forkserve.prefork.system import acceptqueue


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say it")
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_the_queue_and_its_limit_are_known(tmp_path: Path, family: socket.AddressFamily) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        address = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0)}.get(family, str(tmp_path / "s"))
        listener.bind(address)
        listener.listen(7)
        assert acceptqueue.depth(listener) == (0, 7)
        for _ in range(3):
            client = stack.enter_context(socket.socket(family))
            client.connect(listener.getsockname())
        assert acceptqueue.depth(listener) == (3, 7)
        assert acceptqueue.length(listener) == 3
        connection, _ = listener.accept()
        stack.enter_context(connection)
        assert acceptqueue.depth(listener) == (2, 7)

"""Descriptors that come beside the bytes of a unix socket (SCM_RIGHTS). The receiver of a descriptor must close it."""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Iterable


def receive(sock: socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """Receive at most *size* bytes and *most* descriptors, which no program that this process executes inherits.

    Raises OSError; BlockingIOError if nothing has come.
    """
    # Not `socket.recv_fds`, which ignores flags.
    space, flags = socket.CMSG_SPACE(most * array("i").itemsize), getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    data, ancillary, _, _ = sock.recvmsg(size, space, flags)
    descriptors = array("i")
    for _, _, passed in ancillary:
        descriptors.frombytes(passed[: len(passed) - len(passed) % descriptors.itemsize])
    return data, descriptors.tolist()


def close_all(descriptors: Iterable[int]) -> None:
    """Close this process's copies."""
    for descriptor in descriptors:
        os.close(descriptor)

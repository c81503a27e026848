"""The process that holds a TCP port, for the message that the port is taken. Linux only, and only a guess."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_LISTENING = "0A"


def describe_holder(port: int) -> str:
    """Return ` by NAME (pid N)` for a process that listens on the port, or an empty string.

    Processes of other users cannot be seen without privileges.
    """
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for pid in _processes() if sockets else ():
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{name}") in sockets:
                        return f" by {_command(pid)} (pid {pid})"
    return ""


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(table, encoding="ascii") as lines:
            for line in lines:
                fields = line.split()
                if fields[3] == _LISTENING and fields[1].endswith(f":{port:04X}"):
                    yield fields[9]


def _processes() -> list[str]:
    # The newest first: a port is more often held by a recently started process than by the system.
    return sorted((name for name in os.listdir("/proc") if name.isdigit()), key=int, reverse=True)


def _command(pid: str) -> str:
    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        name = file.read().strip()
    return "".join(letter if letter.isprintable() else "?" for letter in name)

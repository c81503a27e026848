"""Usage: what a process takes of the machine, as the system says it. Linux; elsewhere nothing is known."""

from __future__ import annotations

import os
from typing import Final

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_KIB: Final = 1024


def cpu(pid: int) -> float | None:
    """Return the CPU time of a process in seconds, user and system; None if it is not known."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may contain anything.
            fields = file.read().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    except (OSError, ValueError, IndexError):
        return None


def resident(pid: int) -> int | None:
    """Return the memory of a process in bytes, with all that it shares; None if it is not known. This is cheap."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return None


def proportional(pid: int) -> int | None:
    """Return its memory in bytes (PSS), where a page that n processes share counts 1/n; None if it is not known.

    The system looks at every page: milliseconds for a large process.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return next((int(line.split()[1]) * _KIB for line in file if line.startswith(b"Pss:")), None)
    except (OSError, ValueError, IndexError):
        return None

"""Functions of the C library that Python lacks. Loaded once, in the master, so that a child need not."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

PDEATHSIG: Final = 1  # the signal on the parent's death
DUMPABLE: Final = 4
CHILD_SUBREAPER: Final = 36

libc: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def prctl(option: int, value: int) -> bool:
    """Set an option of this process; return False if the system has no such option or refuses."""
    return libc is not None and libc.prctl(option, value, 0, 0, 0) == 0

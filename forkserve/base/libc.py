"""What Python does not have of Linux's C library. Loaded once, in the master: a child should not need to."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

PDEATHSIG: Final = 1  # which signal the parent's death is
DUMPABLE: Final = 4
CHILD_SUBREAPER: Final = 36

libc: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def prctl(option: int, value: int) -> bool:
    """Set one of the options of this process; False where the system has none or refuses."""
    return libc is not None and libc.prctl(option, value, 0, 0, 0) == 0

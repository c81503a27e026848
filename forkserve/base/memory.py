"""Files without a name: memory that is passed on by its descriptor."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from typing import Final

FULL: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def nameless_file(purpose: str) -> int:
    """Return the descriptor of a file without a name: in memory, or a temporary one where the system has no memfd_create.

    Raises OSError, which says what to do if neither can be had.
    """
    if hasattr(os, "memfd_create"):
        try:
            return os.memfd_create(purpose, os.MFD_CLOEXEC)
        except OSError as error:  # an old kernel has none, and a sandbox may forbid it
            if error.errno in FULL:
                raise
    # Memory as well, where it is there; a file of a disk is written back now and then, which costs more and does no harm.
    for directory in ("/dev/shm", None):  # noqa: S108 - without a name it is nobody's but ours
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=directory) as file:
            return os.dup(file.fileno())
    raise OSError(errno.EROFS, "neither memfd_create nor a temporary directory can be used: set TMPDIR to one that is writable")

"""Files without a name: memory that is shared by its descriptor."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from typing import Final

FULL: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def nameless_file(purpose: str) -> int:
    """Return the descriptor of a file without a name: in memory, or a temporary one if the system has no memfd_create.

    Raises OSError, with a remedy if both are impossible.
    """
    if hasattr(os, "memfd_create"):
        try:
            return os.memfd_create(purpose, os.MFD_CLOEXEC)
        except OSError as error:  # missing in an old kernel, or forbidden in a sandbox
            if error.errno in FULL:
                raise
    # /dev/shm is memory too. A file on a disk is written back now and then, which costs more but does no harm.
    for directory in ("/dev/shm", None):  # noqa: S108 - without a name no other process can open it
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=directory) as file:
            return os.dup(file.fileno())
    raise OSError(errno.EROFS, "neither memfd_create nor a temporary directory can be used: set TMPDIR to one that is writable")

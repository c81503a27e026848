"""File systems on which the kernel misses changes, because other machines make them. Pure."""

from __future__ import annotations

import re
from typing import Final

# File systems shared with a host, a hypervisor or other machines.
SHARED: Final = frozenset(
    (
        *("9p", "v9fs", "virtiofs", "drvfs", "vboxsf", "prl_fs", "vmhgfs", "fakeowner"),
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "ncpfs", "coda"),
    )
)
# Local file systems with a driver in FUSE. The kernel notices all their changes.
LOCAL_FUSE: Final = frozenset(("fuseblk", "fuse.fuse-overlayfs"))


def type_of(path: str, mountinfo: str) -> str:
    """Return the type of the file system of an absolute, real path; empty if it is unknown.

    Args:
        path: The path.
        mountinfo: The content of /proc/self/mountinfo: proc_pid_mountinfo(5).
    """
    longest, found = -1, ""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        point = _unescaped(fields[4]).rstrip("/")
        # Of two mounts on one directory, the later one hides the earlier one.
        if (path == point or path.startswith(point + "/")) and len(point) >= longest:
            longest, found = len(point), after.split(" ")[0]
    return found


def misses_changes(kind: str) -> bool:
    """Whether this kernel may miss changes on a type of file system."""
    return kind in SHARED or (kind.startswith("fuse") and kind not in LOCAL_FUSE)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)

"""File systems: on which of them the kernel does not know of all changes, since they are made by others. Pure."""

from __future__ import annotations

import re
from typing import Final

# Shared with a host, a hypervisor or other machines.
SHARED: Final = frozenset(
    (
        *("9p", "v9fs", "virtiofs", "drvfs", "vboxsf", "prl_fs", "vmhgfs", "fakeowner"),
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "ncpfs", "coda"),
    )
)
# Local ones that are only written in that way.
LOCAL_FUSE: Final = frozenset(("fuseblk", "fuse.fuse-overlayfs"))


def type_of(path: str, mountinfo: str) -> str:
    """Return the type of the file system that an absolute, real path is on; empty if that is not known.

    Args:
        path: The path.
        mountinfo: What /proc/self/mountinfo says: proc_pid_mountinfo(5).
    """
    longest, found = -1, ""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        point = _unescaped(fields[4]).rstrip("/")
        # Of two on the same directory the later one hides the earlier one.
        if (path == point or path.startswith(point + "/")) and len(point) >= longest:
            longest, found = len(point), after.split(" ")[0]
    return found


def tells_too_little(kind: str) -> bool:
    """Whether changes on a type of file system may go unnoticed by this kernel."""
    return kind in SHARED or (kind.startswith("fuse") and kind not in LOCAL_FUSE)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)

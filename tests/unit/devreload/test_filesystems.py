"""File systems on which the kernel misses changes."""

from __future__ import annotations

import pytest

from forkserve.devreload.filesystems import misses_changes, type_of

MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:35 / /mnt/c rw - 9p drvfs rw,aname=drvfs
41 22 0:36 / /mnt/with\040blank rw - nfs4 host:/x rw
42 22 0:37 / /mnt/c/local rw - tmpfs tmpfs rw
43 22 0:38 / /mnt/c/local rw - fuse.sshfs host:/y rw
44 22 0:39 /
a line of another kind
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/a/app.py", "ext4"),
        ("/mnt/c", "9p"),
        ("/mnt/c/app.py", "9p"),
        ("/mnt/cd/app.py", "ext4"),
        ("/mnt/with blank/app.py", "nfs4"),
        ("/mnt/c/local/app.py", "fuse.sshfs"),
    ],
)
def test_a_path_is_on_its_nearest_and_latest_mount(path: str, kind: str) -> None:
    assert type_of(path, MOUNTS) == kind


def test_without_mounts_the_type_is_empty() -> None:
    assert type_of("/home", "") == ""


@pytest.mark.parametrize(
    ("kind", "misses"),
    [("ext4", False), ("9p", True), ("nfs4", True), ("fuse.sshfs", True), ("fuseblk", False), ("fuse.fuse-overlayfs", False)],
)
def test_the_kernel_misses_changes_on_shared_file_systems(kind: str, misses: bool) -> None:  # noqa: FBT001
    assert misses_changes(kind) is misses

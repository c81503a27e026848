"""Run a program in which system calls fail or a user's limits are exhausted: `without.py WHAT... -- PROGRAM...`.

WHAT is the name of a system call (it fails with ENOSYS), `NAME=ERRNO`, `threads` (no thread can be started, as at an ordinary
user's process limit), `ipv6` (a kernel without it), or `proc` (an empty /proc, in a mount namespace; as root only). System calls
are blocked by a seccomp filter, in pure ctypes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

NUMBERS = {  # x86_64, aarch64
    "memfd_create": (319, 279),
    "pidfd_open": (434, 434),
    "prctl": (157, 167),
    "clone3": (435, 435),
    "inotify_init1": (294, 26),
    "flock": (73, 32),
    "sendfile": (40, 71),
    "statx": (332, 291),
    "io_uring_setup": (425, 425),
    "close_range": (436, 436),
    "eventfd2": (290, 19),
}
NO_NEW_PRIVS, SECCOMP, FILTER = 38, 22, 2
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
CLONE, CLONE3, CLONE_THREAD = (56, 220), 435, 0x10000
SOCKET, AF_INET6 = (41, 198), 10
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 16384, 1 << 18


def forbid(numbers: dict[int, int], clone: int | None, socket: int | None) -> None:
    """Let these system calls fail with these errors, `clone` for threads, and `socket` for IPv6: here and in descendants."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = [struct.pack("HBBI", 0x20, 0, 0, 0)]  # load the number of the call
    for number, error in numbers.items():
        code.append(struct.pack("HBBI", 0x15, 0, 1, number))  # if it is this one
        code.append(struct.pack("HBBI", 0x06, 0, 0, ERRNO | error))
    if clone is not None:
        code.append(struct.pack("HBBI", 0x15, 0, 3, clone))
        code.append(struct.pack("HBBI", 0x20, 0, 0, 16))  # its first argument
        code.append(struct.pack("HBBI", 0x45, 0, 1, CLONE_THREAD))
        code.append(struct.pack("HBBI", 0x06, 0, 0, ERRNO | errno.EAGAIN))
    if socket is not None:
        code.append(struct.pack("HBBI", 0x20, 0, 0, 0))
        code.append(struct.pack("HBBI", 0x15, 0, 3, socket))
        code.append(struct.pack("HBBI", 0x20, 0, 0, 16))
        code.append(struct.pack("HBBI", 0x15, 0, 1, AF_INET6))
        code.append(struct.pack("HBBI", 0x06, 0, 0, ERRNO | errno.EAFNOSUPPORT))
    code.append(struct.pack("HBBI", 0x06, 0, 0, ALLOW))
    program = b"".join(code)
    buffer = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("count", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    argument = Program(len(code), ctypes.cast(buffer, ctypes.c_void_p).value)
    if libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(SECCOMP, FILTER, ctypes.byref(argument), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def hide_proc() -> None:
    """Mount an empty directory on /proc."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "unshare")
    if libc.mount(b"none", b"/proc", b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "mount")


def main(words: list[str]) -> None:
    at = words.index("--")
    column = 0 if platform.machine() == "x86_64" else 1
    numbers, clone, socket = {}, None, None
    for word in words[:at]:
        name, _, value = word.partition("=")
        if name == "threads":
            clone, numbers[CLONE3] = CLONE[column], errno.ENOSYS  # a filter cannot read the flags of clone3; libc then uses clone
        elif name == "ipv6":
            socket = SOCKET[column]
        elif name == "proc":
            hide_proc()
        else:
            numbers[NUMBERS[name][column]] = getattr(errno, value or "ENOSYS")
    if numbers or socket is not None:
        forbid(numbers, clone, socket)
    os.execv(words[at + 1], words[at + 1 :])


if __name__ == "__main__":
    main(sys.argv[1:])

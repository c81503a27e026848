"""Privileges: the user and group of workers, and how a worker drops to them for good.

The master keeps its privileges, to bind low ports and to open its logs. The user is looked up once, in the master: a directory
service that is slow or gone must not delay a respawn.
"""

from __future__ import annotations

import functools
import grp
import os
import pwd
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forkserve.base.errors import BootError, ConfigError
from forkserve.base.libc import DUMPABLE, prctl
from forkserve.base.records import record

if TYPE_CHECKING:
    from forkserve.base.settings import AccountSettings


@dataclass(frozen=True, slots=True)
class Account:
    """The account that workers run as. `name` and `home` are None for a number that no user has."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str | None
    home: str | None


@record
class KnownAccount:
    """An account in an upgrade. `settings` are the values of `user`, `group` and `initgroups` that named it."""

    settings: tuple[str | None, str | None, bool]
    account: Account


_known: dict[tuple[str | None, str | None, bool], Account] = {}  # from the previous program


def complaints(settings: AccountSettings) -> Iterator[tuple[str, str]]:
    """Yield setting and message if --user or --group does not exist."""
    try:
        _account(settings.user, settings.group, settings.initgroups)
    except _UnknownAccountError as error:
        yield error.setting, str(error)


def check_and_set_umask(settings: AccountSettings) -> None:
    """Set the umask, and check that workers can switch to their account. In the master, before it opens any file.

    Raises ConfigError if they cannot.
    """
    account(settings)
    if settings.umask is not None:
        os.umask(settings.umask)


def account(settings: AccountSettings) -> Account | None:
    """Return the account that workers switch to; None if they keep the master's.

    Raises ConfigError for an account that does not exist, or that only root can switch to.
    """
    try:
        found = _account(settings.user, settings.group, settings.initgroups)
    except _UnknownAccountError as error:
        raise ConfigError(f"--{error.setting}: {error}") from None
    if found is None or os.geteuid() == 0:
        return found
    if found.uid != os.geteuid():
        raise ConfigError(f"--user {settings.user}: only root can run workers as another user; start as root, or leave it out")
    if settings.group is not None and found.gid != os.getegid():
        raise ConfigError(
            f"--group {settings.group}: only root can run workers with another group; start as root, or leave it out"
        )
    return None


def owner(settings: AccountSettings) -> tuple[int, int] | None:
    """Return the uid and gid of log and socket files; None: those of the master."""
    found = account(settings)
    return (found.uid, found.gid) if found else None


def drop(settings: AccountSettings) -> bool:
    """Switch to the account of --user and --group, for good; return whether that changed anything. In a worker, before app code.

    HOME, USER and LOGNAME become those of the user, as a service manager sets them: files below root's home cannot be read any
    more. --env, which is applied later, still wins.

    Raises BootError if the system refuses.
    """
    found = account(settings)
    if found is None:
        return False
    try:
        os.setgroups(found.groups)
        os.setgid(found.gid)
        os.setuid(found.uid)  # all three of each, as root
    except OSError as error:  # such as a container without that range of ids
        raise BootError(
            f"cannot become user {found.name or found.uid} (uid {found.uid}, gid {found.gid}): {error.strerror}"
        ) from None
    if found.uid != 0:
        _check_no_way_back()
    prctl(DUMPABLE, 1)  # gives /proc/self to that user, so that /dev/stderr can be opened
    if settings.user is not None and found.name is not None and found.home is not None:
        os.environ.update(HOME=found.home, USER=found.name, LOGNAME=found.name)
    return True


def _check_no_way_back() -> None:
    for way_back in (os.setuid, os.seteuid):
        try:
            way_back(0)
        except PermissionError:
            continue
        raise BootError("the worker could become root again, so it does not run")


class _UnknownAccountError(Exception):
    """There is no such account; `setting` is the setting that names it."""

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(message)
        self.setting = setting


def export(settings: AccountSettings) -> KnownAccount | None:
    """Describe the account, for an upgrade."""
    found = _account(settings.user, settings.group, settings.initgroups)
    return None if found is None else KnownAccount((settings.user, settings.group, settings.initgroups), found)


def adopt(found: KnownAccount | None) -> None:
    """Know the account from the previous program, if it cannot be looked up any more."""
    if found is not None:
        _known[found.settings] = found.account


@functools.lru_cache(maxsize=8)
def _account(user: str | None, group: str | None, initgroups: bool) -> Account | None:  # noqa: FBT001 - a key of the cache
    try:
        return _look_up(user, group, initgroups=initgroups)
    except _UnknownAccountError:
        if (user, group, initgroups) not in _known:
            raise
        return _known[user, group, initgroups]


def _look_up(user: str | None, group: str | None, *, initgroups: bool) -> Account | None:
    if user is None and group is None:
        return None
    entry = _find_user(user)
    if group is not None:
        gid = _find_group(group)
    elif entry is not None:
        gid = entry.pw_gid
    else:
        raise _UnknownAccountError("user", f"no user has the number {user}, so --group must be given too")
    uid = entry.pw_uid if entry else int(user or 0)
    name = entry.pw_name if entry else None
    groups = tuple(os.getgrouplist(name, gid)) if name and user is not None and initgroups else (gid,)
    return Account(uid, gid, groups, name, entry.pw_dir if entry else None)


def _find_user(user: str | None) -> pwd.struct_passwd | None:
    """Find the user by name or number (default: this process's); None for a number that no user has."""
    number = os.geteuid() if user is None else _number(user)
    try:
        return pwd.getpwnam(user or "") if number is None else pwd.getpwuid(number)
    except (KeyError, ValueError):
        if number is None:
            raise _UnknownAccountError("user", f"there is no user {user!r}") from None
        return None


def _find_group(group: str) -> int:
    number = _number(group)
    try:
        return grp.getgrnam(group).gr_gid if number is None else number
    except (KeyError, ValueError):
        raise _UnknownAccountError("group", f"there is no group {group!r}") from None


def _number(text: str) -> int | None:
    """Read a uid or gid. The highest number means "unchanged" to the system, and is not one."""
    return int(text) if re.fullmatch("[0-9]{1,10}", text) and int(text) < 2**32 - 1 else None

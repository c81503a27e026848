"""Checks of the arguments that commands take. In the master."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from forkserve.base.errors import CommandError
from forkserve.config.values import LONGEST_SECONDS, shown

if TYPE_CHECKING:
    from forkserve.config.settings import Settings
    from forkserve.prefork.policy.pool import Pool


def number(value: int | str, what: str) -> int:
    """Return the number that a number or text names. Raises CommandError: it is not `what`."""
    if isinstance(value, str) and re.fullmatch("[+-]?[0-9]{1,9}", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise CommandError(f"{shown(value)} is not {what}", "usage")


def slot(worker: int | str, pool: Pool) -> int:
    """Return the slot that a number or text names. Raises CommandError if there is none."""
    found = number(worker, "a worker's id")
    if found not in {member.slot for member in pool.members.workers()}:
        raise CommandError(f"there is no worker {shown(found)}", "usage")
    return found


def check_size(wanted: int, settings: Settings, limit: int) -> None:
    """Check a number of workers; `limit` is the most without `max_workers`. Raises CommandError."""
    least, most = settings.min_workers, settings.max_workers or limit
    if wanted < 0 or (wanted and not least <= wanted <= most):
        raise CommandError(f"cannot have {shown(wanted)} workers: between {least or 1} and {most} are allowed", "refused")


def check_call(name: object, timeout: object) -> None:
    """Check the name of a command of the user's own, and its timeout. Raises CommandError."""
    if not isinstance(name, str):
        raise CommandError(f"the name of a command is a string, not {shown(name)}", "usage")
    if timeout is not None and not (isinstance(timeout, int | float) and abs(timeout) <= LONGEST_SECONDS):
        raise CommandError(f"a timeout is a number of seconds, not {shown(timeout)}", "usage")

"""Stacks: has workers write the stacks of all threads (worker/stacks.py), and collects them. In the master."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from forkserve.base.stacktext import trim
from forkserve.prefork.ipc.pending import Pending

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forkserve.prefork.master.child import Child
    from forkserve.prefork.system.poller import Poller

PATIENCE: Final = 2.0  # seconds for a worker to write its stacks, when a user requests them
NO_ANSWER: Final = "no answer: it is stuck in native code, or busy"
_LOOK_EVERY: Final = 0.02


def collect(
    children: Sequence[Child], poller: Poller, patience: float = PATIENCE, *, abort: bool = False, whole: bool = False
) -> Pending:
    """Request the stacks of each of the children. The value is a list with `id`, `pid`, `generation` and `stacks` of each.

    With *abort* each calls the hook worker_abort first; with *whole* the stacks have the frames of forkserve, too.

    No event reports that a process has answered. So the files are checked until all have, or for `patience` seconds.
    """
    pending = Pending()
    end = time.monotonic() + patience
    for child in children:
        child.ask_for_stacks(abort=abort)

    def look() -> None:
        here = [child for child in children if not child.channel.closed]
        if all(child.answered for child in here) or time.monotonic() >= end:
            timer.cancel()
            pending.resolve([_shown(child, whole=whole) for child in here])

    timer = poller.every(_LOOK_EVERY, look)
    return pending


def _shown(child: Child, *, whole: bool) -> dict[str, Any]:
    found = child.read_stacks() if child.answered else NO_ANSWER
    text = "\n".join([*child.in_hand(), found if whole else trim(found)])
    return {"id": child.id, "pid": child.pid, "generation": child.member.generation, "stacks": text}

"""Stacks: what every thread of the workers is doing, asked for while they go on working."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from forkserve.prefork.commands.pending import Pending

if TYPE_CHECKING:
    from forkserve.prefork.child import Child
    from forkserve.prefork.poller import Poller

LOOK_EVERY = 0.02
PATIENCE = 2.0


def collect(children: Sequence[Child], poller: Poller) -> Pending:
    """Ask each of the children for its stacks. The value is a list with `id`, `pid`, `generation` and `stacks` of each.

    A process answers within a moment, in C, even if it is stuck; no event tells that it has, so its file is looked at until
    it grows no more. In the master.
    """
    pending = Pending()
    end = time.monotonic() + PATIENCE
    sizes: dict[int, int] = {}
    for child in children:
        child.ask_for_stacks()

    def look() -> None:
        here = [child for child in children if not child.channel.closed]
        now = {child.age: os.fstat(child.stacks).st_size for child in here}
        if all(size and size == sizes.get(age) for age, size in now.items()) or time.monotonic() >= end:
            timer.cancel()
            pending.resolve([_shown(child) for child in here])
        sizes.update(now)

    timer = poller.every(LOOK_EVERY, look)
    return pending


def _shown(child: Child) -> dict[str, Any]:
    return {"id": child.id, "pid": child.pid, "generation": child.member.generation, "stacks": child.last_words()}

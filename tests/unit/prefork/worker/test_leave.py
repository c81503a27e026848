"""Leave, with a worker that only notes what it is told."""

from __future__ import annotations

from math import inf
from typing import Any, cast

from forkserve.prefork.worker.leave import Leave


class Orphan:
    """Its master does not answer any more."""

    draining = False

    def send(self, _: object) -> bool:
        return False

    def receive(self) -> None:
        """Nothing comes."""

    def drain(self) -> None:
        self.draining = True


def test_a_worker_that_drains_waits_for_no_answer() -> None:
    worker = Orphan()
    leave = Leave(cast("Any", worker), worker.receive, lambda _: None)
    assert leave.time_left() == inf
    leave.request()

    assert worker.draining
    assert leave.time_left() == inf, "or it would look all the time"

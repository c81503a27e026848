"""`Leave` with a worker that only records calls."""

from __future__ import annotations

from math import inf
from typing import Any, cast

from forkserve.prefork.worker.leave import Leave


class Orphan:
    """A worker whose master no longer replies."""

    draining = False

    def send(self, _: object) -> bool:
        return False

    def receive(self) -> None:
        """Receive nothing."""

    def drain(self) -> None:
        self.draining = True


def test_a_worker_without_a_master_drains_without_a_reply() -> None:
    worker = Orphan()
    leave = Leave(cast("Any", worker), worker.receive, lambda _: None)
    assert leave.time_left() == inf
    leave.request()

    assert worker.draining
    assert leave.time_left() == inf, "otherwise the worker would poll all the time"

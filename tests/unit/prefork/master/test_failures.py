"""The reported reason for the exit of a worker."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from forkserve.prefork.master import failures

if TYPE_CHECKING:
    import pytest

KILLED = -signal.SIGKILL
FOR_MEMORY = "probably killed by the system for lack of memory"


def a_child(reason: str = "") -> Any:
    """Return a worker that has not reported a failure; `reason` is the reason for which the master killed it."""
    return SimpleNamespace(failure=None, member=SimpleNamespace(reason=reason))


def test_an_out_of_memory_kill_is_reported_once_and_only_for_a_killed_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's counter includes kills of other programs."""
    count = 5
    monkeypatch.setattr(failures, "killed_for_memory", lambda: count)
    reasons = failures.Failures(plain=False)
    assert reasons.reason(a_child(), KILLED) is None
    count += 1
    assert reasons.reason(a_child(), KILLED) == FOR_MEMORY
    count += 3
    assert reasons.reason(a_child(), KILLED) == FOR_MEMORY
    assert reasons.reason(a_child(), KILLED) is None
    count += 1
    reasons.booted(1)
    assert reasons.reason(a_child(), KILLED) is None
    for child, status in ((a_child(), 0), (a_child(), -signal.SIGSEGV), (a_child("stuck"), KILLED)):
        count += 1
        assert reasons.reason(child, status) is None
        assert reasons.reason(a_child(), KILLED) is None

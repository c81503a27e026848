"""What is said of the end of a worker."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from forkserve.prefork.master import failures

if TYPE_CHECKING:
    import pytest

KILLED = -signal.SIGKILL
FOR_MEMORY = "killed by the system for want of memory, it seems"


def a_child(reason: str = "") -> Any:
    """A worker that has not said why it ends; `reason` is why we killed it."""
    return SimpleNamespace(failure=None, member=SimpleNamespace(reason=reason))


def test_the_system_s_kills_count_once_and_only_where_somebody_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts those of other programs, too."""
    count = 5
    monkeypatch.setattr(failures, "killed_for_memory", lambda: count)
    told = failures.Failures(plain=False)
    assert told.reason(a_child(), KILLED) is None
    count += 1
    assert told.reason(a_child(), KILLED) == FOR_MEMORY
    count += 3
    assert told.reason(a_child(), KILLED) == FOR_MEMORY
    assert told.reason(a_child(), KILLED) is None
    count += 1
    told.booted(1)
    assert told.reason(a_child(), KILLED) is None
    for child, status in ((a_child(), 0), (a_child(), -signal.SIGSEGV), (a_child("stuck"), KILLED)):
        count += 1
        assert told.reason(child, status) is None
        assert told.reason(a_child(), KILLED) is None

"""Observers: a failing observer does not stop the others; events without an observer are not computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forkserve.base.logs import logger
from forkserve.prefork.master.observers import FrontendObserver, Observer, Observers

if TYPE_CHECKING:
    import pytest


class Fails(Observer):
    def scaled(self, wanted: int, before: int) -> None:
        raise RuntimeError(f"{before} to {wanted}")


class Counts(Observer):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def scaled(self, wanted: int, before: int) -> None:
        self.seen.append(wanted)


def test_a_failing_observer_is_logged_and_the_others_are_notified(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(logger, "exception", lambda text, *values: lines.append(text % values))
    counts = Counts()
    Observers(Fails(), counts).notify(Observer.scaled, 3, 2)

    assert counts.seen == [3]
    assert lines == ["observer Fails failed: scaled"]


def test_any_takes_is_true_if_an_observer_handles_the_event() -> None:
    observers = Observers(FrontendObserver())
    assert not observers.any_takes(Observer.scaled)
    observers.add(Counts())
    assert observers.any_takes(Observer.scaled)
    assert not observers.any_takes(Observer.listeners_changed)

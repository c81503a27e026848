"""Observers: one that fails harms no other, and what none takes need not be found out."""

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


def test_one_that_fails_is_logged_and_the_others_are_notified(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(logger, "exception", lambda text, *values: lines.append(text % values))
    counts = Counts()
    Observers(Fails(), counts).notify(Observer.scaled, 3, 2)

    assert counts.seen == [3]
    assert lines == ["observer Fails failed: scaled"]


def test_whether_any_takes_an_event() -> None:
    observers = Observers(FrontendObserver())
    assert not observers.any_takes(Observer.scaled)
    observers.add(Counts())
    assert observers.any_takes(Observer.scaled)
    assert not observers.any_takes(Observer.listeners_changed)

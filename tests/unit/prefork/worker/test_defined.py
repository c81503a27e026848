"""The description of the commands of a worker class."""

from __future__ import annotations

from typing import Any

from forkserve.base.records import dump
from forkserve.prefork.worker.defined import describe


class Base:
    def child_ping(self) -> None:
        """Report that the worker runs."""


class Shop(Base):
    child_length = len  # written in C; the only argument is the worker
    child_min = min  # written in C, without a signature

    def child_put(self, key: str, value: int = 0, *rest: str, flag: bool = False, **more: str) -> None:
        """Put it somewhere.

        More about it.
        """

    @staticmethod
    def child_count(what: str, /) -> None:
        pass

    def child_find(self, what: str, *, limit: int, deep: bool = False) -> None:
        pass


def test_a_command_is_described_by_its_parameters_and_first_line() -> None:
    found: dict[str, Any] = {one.name: dump(one) for one in describe(Shop, Base)}

    assert "ping" not in found
    assert found["put"]["help"] == "Put it somewhere."
    assert (found["put"]["usage"], found["put"]["keywords"]) == ("KEY [VALUE] [REST...] [flag=FLAG] [NAME=VALUE...]", None)
    assert (found["count"]["usage"], found["count"]["keywords"], found["count"]["help"]) == ("WHAT", [], "")
    assert (found["find"]["usage"], found["find"]["keywords"]) == ("WHAT limit=LIMIT [deep=DEEP]", ["what", "limit", "deep"])
    assert (found["min"]["usage"], found["min"]["keywords"]) == ("[ARG...]", ())

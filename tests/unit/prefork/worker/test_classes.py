"""Worker classes by name, and with mixins."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from forkserve.base.errors import AppLoadError, ConfigError
from forkserve.prefork.worker.classes import compose, load_class
from forkserve.prefork.worker.worker import Worker


class Base(Worker):
    """What is mixed into."""

    def child_who(self) -> list[str]:
        return ["base"]


class Left:
    def child_who(self) -> list[str]:
        return ["left", *super().child_who()]  # type: ignore[misc]


class Right:
    def child_who(self) -> list[str]:
        return ["right", *super().child_who()]  # type: ignore[misc]


def make(worker_class: type[Worker]) -> Worker:
    """An object of the class, without a process to be."""
    return worker_class.__new__(worker_class)


def test_mixins_stand_in_front_in_their_order() -> None:
    """Composed by MRO, so that super() leads from each to the next."""
    composed = compose(Base, [Left, Right])

    assert composed.__mro__[1:4] == (Left, Right, Base)
    assert make(composed).child_who() == ["left", "right", "base"]  # type: ignore[attr-defined]
    assert make(compose(Base, [Right, Left])).child_who() == ["right", "left", "base"]  # type: ignore[attr-defined]


def test_it_keeps_its_name() -> None:
    composed = compose(Base, [Left])

    assert (composed.__name__, composed.__module__, composed.__doc__) == ("Base", __name__, "What is mixed into.")


def test_without_mixins_it_is_the_class_itself() -> None:
    assert compose(Base, []) is Base


def test_a_mixin_may_be_a_worker_itself() -> None:
    class Other(Worker):
        def child_other(self) -> None:
            pass

    assert compose(Base, [Other]).__mro__[1:4] == (Other, Base, Worker)


def test_a_mixin_twice_over() -> None:
    """With --mixin on the command line as well as in Python."""
    assert make(compose(compose(Base, [Right]), [Left])).child_who() == ["left", "right", "base"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("mixin", ["text", Left(), None, 3, len])
def test_a_mixin_that_is_no_class(mixin: object) -> None:
    with pytest.raises(ConfigError, match="this is not a class"):
        compose(Base, [mixin])  # type: ignore[list-item]


@pytest.mark.parametrize("mixins", [[Left, Left], [Worker], [Left, Base]])
def test_mixins_that_do_not_go_together(mixins: list[type]) -> None:
    with pytest.raises(ConfigError, match="the mixins and Base cannot be combined: ") as found:
        compose(Base, mixins)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", ["Big", "1st", "", "a-b", "ä", "_x", "x" * 65])
def test_a_command_that_nobody_could_call(name: str) -> None:
    """Found at the start, and not when somebody calls it."""
    mixin = type("Mixin", (), {f"child_{name}": lambda self: None})

    with pytest.raises(ConfigError, match="is no name for a command") as found:
        compose(Base, [mixin])
    assert "\n" not in str(found.value)
    assert f"child_{name}" in str(found.value)


@pytest.mark.parametrize("name", ["start", "ready", "stop", "exit", "timeout", "register", "unregister", "signal"])
def test_a_command_that_has_the_name_of_a_hook(name: str) -> None:
    """`on_start` cannot be both."""
    mixin = type("Mixin", (), {f"child_{name}": lambda self: None})

    with pytest.raises(ConfigError, match=f"on_{name} is a hook"):
        compose(Base, [mixin])


def test_a_command_that_is_no_method() -> None:
    with pytest.raises(ConfigError, match="child_count is not a method"):
        compose(Base, [type("Mixin", (), {"child_count": 3})])


def test_by_name() -> None:
    assert load_class("forkserve.prefork.worker.worker:Worker", "--mixin") is Worker


@pytest.mark.parametrize(
    "spec",
    [
        "nothing_here:Class",
        "forkserve.prefork.worker.worker:Nothing",
        "forkserve.prefork.worker.worker",
        "forkserve.prefork.worker.worker:",
        ":Class",
        "",
    ],
)
def test_by_a_name_that_leads_nowhere(spec: str) -> None:
    with pytest.raises(ConfigError, match=f"^--mixin {spec}: .*; write module:Class$"):
        load_class(spec, "--mixin")


@pytest.mark.parametrize("spec", ["forkserve.prefork.worker.worker:current_worker", "forkserve.prefork.worker.worker:BEAT_EVERY"])
def test_by_the_name_of_something_else(spec: str) -> None:
    with pytest.raises(ConfigError, match="this is not a class"):
        load_class(spec, "--worker")


@pytest.mark.parametrize("flag", ["--mixin", "--worker"])
@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import nothing_like_this", "ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("from os import nothing_like_this", "ImportError: cannot import name 'nothing_like_this' from 'os'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("class Class(", "SyntaxError: '(' was never closed"),
        ("None.nothing_like_this", "AttributeError: 'NoneType' object has no attribute 'nothing_like_this'"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
    ],
)
def test_the_module_itself_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, why: str, flag: str) -> None:
    """A fault of the user's code is no slip in the command line: it comes with the traceback, and code 4."""
    (tmp_path / "needs_more.py").write_text(f"{code}\n")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(AppLoadError) as found:
        load_class("needs_more:Class", flag)
    assert str(found.value).startswith(f"{flag} needs_more:Class: 'needs_more' failed at import: {why}")
    assert re.findall('File "(.*)", line', found.value.traceback_text or "") == [str(tmp_path / "needs_more.py")]
    assert "needs_more" not in sys.modules

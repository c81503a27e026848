"""Worker classes loaded by name, and composed with mixins."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from forkserve.base.errors import AppLoadError, ConfigError
from forkserve.prefork.worker.classes import compose, load_class
from forkserve.prefork.worker.worker import Worker


class Base(Worker):
    """A worker class that gets mixins."""

    def child_who(self) -> list[str]:
        return ["base"]


class Left:
    def child_who(self) -> list[str]:
        return ["left", *super().child_who()]  # type: ignore[misc]


class Right:
    def child_who(self) -> list[str]:
        return ["right", *super().child_who()]  # type: ignore[misc]


def make(worker_class: type[Worker]) -> Worker:
    """Return an object of the class without a process."""
    return worker_class.__new__(worker_class)


def test_mixins_come_first_in_their_order() -> None:
    """`super()` leads from each mixin to the next."""
    composed = compose(Base, [Left, Right])

    assert composed.__mro__[1:4] == (Left, Right, Base)
    assert make(composed).child_who() == ["left", "right", "base"]  # type: ignore[attr-defined]
    assert make(compose(Base, [Right, Left])).child_who() == ["right", "left", "base"]  # type: ignore[attr-defined]


def test_a_composed_class_keeps_its_name() -> None:
    composed = compose(Base, [Left])

    assert (composed.__name__, composed.__module__, composed.__doc__) == ("Base", __name__, "A worker class that gets mixins.")


def test_without_mixins_the_class_itself_is_returned() -> None:
    assert compose(Base, []) is Base


def test_a_mixin_may_be_a_worker_class() -> None:
    class Other(Worker):
        def child_other(self) -> None:
            pass

    assert compose(Base, [Other]).__mro__[1:4] == (Other, Base, Worker)


def test_a_composed_class_can_be_composed_again() -> None:
    """Mixins may come from --mixin on the command line and from Python."""
    assert make(compose(compose(Base, [Right]), [Left])).child_who() == ["left", "right", "base"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("mixin", ["text", Left(), None, 3, len])
def test_a_mixin_that_is_no_class_is_refused(mixin: object) -> None:
    with pytest.raises(ConfigError, match="this is not a class"):
        compose(Base, [mixin])  # type: ignore[list-item]


@pytest.mark.parametrize("mixins", [[Left, Left], [Worker], [Left, Base]])
def test_mixins_that_cannot_be_combined_are_refused(mixins: list[type]) -> None:
    with pytest.raises(ConfigError, match="the mixins and Base cannot be combined: ") as found:
        compose(Base, mixins)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", ["Big", "1st", "", "a-b", "ä", "_x", "x" * 65])
def test_a_bad_command_name_is_refused(name: str) -> None:
    """The error comes at the start, not at a call."""
    mixin = type("Mixin", (), {f"child_{name}": lambda self: None})

    with pytest.raises(ConfigError, match="is no name for a command") as found:
        compose(Base, [mixin])
    assert "\n" not in str(found.value)
    assert f"child_{name}" in str(found.value)


@pytest.mark.parametrize("name", ["start", "ready", "stop", "exit", "timeout", "register", "unregister", "signal"])
def test_a_command_with_the_name_of_a_hook_is_refused(name: str) -> None:
    """`on_start` cannot be a hook and a notification."""
    mixin = type("Mixin", (), {f"child_{name}": lambda self: None})

    with pytest.raises(ConfigError, match=f"on_{name} is a hook"):
        compose(Base, [mixin])


def test_a_command_that_is_no_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="child_count is not a method"):
        compose(Base, [type("Mixin", (), {"child_count": 3})])


def test_a_class_is_loaded_by_name() -> None:
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
def test_a_class_name_that_does_not_exist_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match=f"^--mixin {spec}: .*; write module:Class$"):
        load_class(spec, "--mixin")


@pytest.mark.parametrize("spec", ["forkserve.prefork.worker.worker:current_worker", "forkserve.prefork.worker.worker:BEAT_EVERY"])
def test_a_name_of_another_object_is_refused(spec: str) -> None:
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
def test_an_error_in_the_module_is_a_load_error_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, why: str, flag: str
) -> None:
    """An error in the user's code is no usage error: it has the traceback, and the exit code is 4."""
    (tmp_path / "needs_more.py").write_text(f"{code}\n")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(AppLoadError) as found:
        load_class("needs_more:Class", flag)
    assert str(found.value).startswith(f"{flag} needs_more:Class: 'needs_more' failed at import: {why}")
    assert re.findall('File "(.*)", line', found.value.traceback_text or "") == [str(tmp_path / "needs_more.py")]
    assert "needs_more" not in sys.modules

"""What the command looks up by name when it takes over from a previous program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forkserve.cli import takeover
from forkserve.http.message import readers
from forkserve.web import loop

if TYPE_CHECKING:
    import pytest


def test_optional_modules_that_are_installed_and_were_not_imported_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert takeover.missing_modules() == []

    monkeypatch.setattr(loop, "uvloop", None)
    monkeypatch.setattr(readers, "_head", None)

    assert takeover.missing_modules() == ["uvloop", "forkserve.http.message._head"]

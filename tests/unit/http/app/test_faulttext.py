"""The error and its place, from the texts of load errors."""

import importlib
import sys
from pathlib import Path

import pytest

from forkserve.base.errors import AppLoadError
from forkserve.config.apps import load_app
from forkserve.http.app.faulttext import Fault, read_fault


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import no_such_thing", Fault("ModuleNotFoundError: No module named 'no_such_thing'", "{}.py, line 1", "import no_such_thing")),
        (
            "def f():\n    return {}['a']\nf()",
            Fault("KeyError: 'a'", "{}.py, line 2, in f", "return {}['a']\n       ~~^^^^^"),
        ),
        ("import json\njson.loads('x')", Fault("json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
                                               "{}.py, line 2", "json.loads('x')")),
        ("x = (", Fault("SyntaxError: '(' was never closed", "{}.py, line 1", "x = (\n    ^")),
        (
            "try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise ValueError('two\\nlines')",
            Fault("ValueError: two", "{}.py, line 4", "raise ValueError('two\\nlines')"),
        ),
    ],
)  # fmt: skip
def test_the_error_is_that_of_the_users_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, expected: Fault
) -> None:
    name = f"faulty_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(AppLoadError) as caught:
        load_app(f"{name}:app")
    sys.modules.pop(name, None)

    found = read_fault(f"{caught.value}\n\n{caught.value.traceback_text}", str(tmp_path))

    assert (found.headline, found.place) == (expected.headline, expected.place.format(name))
    assert found.source.split("\n")[0] == expected.source.split("\n")[0]


@pytest.mark.parametrize("text", ["worker 1: no app", "module 'a' has no attribute 'b'\n\nno traceback", ""])
def test_without_a_traceback_the_first_line_is_the_error(text: str) -> None:
    assert read_fault(text, "/") == Fault(text.partition("\n")[0], "", "")


def test_an_error_in_a_library_alone_is_shown_there() -> None:
    text = 'error\n\nTraceback (most recent call last):\n  File "/usr/lib/python3.11/json.py", line 7, in loads\n    raise\nError: x\n'

    assert read_fault(text, "/p") == Fault("Error: x", "/usr/lib/python3.11/json.py, line 7, in loads", "raise")

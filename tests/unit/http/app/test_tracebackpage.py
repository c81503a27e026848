"""Tracebacks as a page and as text: the error first, then the user's own code."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from forkserve.http.app.tracebackpage import MOST_ERRORS, MOST_FRAMES, MOST_TEXT, as_html, as_text, is_long, without_own_frames
from forkserve.http.message.response import read_status

CHAIN = """\
def divide(a, b):
    try:
        return a / b
    except ZeroDivisionError as error:
        raise ValueError("no </pre><script>alert(1)</script>") from error
divide(1, 0)
"""
HANDLED = "try:\n    {}['a']\nexcept KeyError:\n    int('x')\n"
GROUP = """\
def one():
    raise OSError(1, "first")
def two():
    raise KeyError("second")
errors = []
for call in one, two:
    try:
        call()
    except Exception as error:
        errors.append(error)
raise ExceptionGroup("both", errors)
"""


def raised(tmp_path: Path, source: str, **names: Any) -> BaseException:
    """Return what the source of the module `shop` raises."""
    path = tmp_path / "shop.py"
    path.write_text(source)
    try:
        exec(compile(source, path, "exec"), {"__name__": "shop", **names})
    except BaseException as error:  # noqa: BLE001 - also SystemExit
        trace = error.__traceback__
        return error.with_traceback(trace and trace.tb_next)  # without this function
    raise AssertionError(source)


def test_the_error_and_the_users_code_come_first(tmp_path: Path) -> None:
    error = raised(tmp_path, CHAIN)
    page = as_html(error, "GET /<x>", str(tmp_path))

    assert "<title>ValueError: no &lt;/pre&gt;" in page
    begin = page.partition("<p>The app raised this in <code>GET /&lt;x&gt;</code>")[0]
    assert (
        "<h1>ValueError: no &lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;</h1>\n<p><strong>shop.py, line 5, in divide</strong></p>"
        in begin
    )
    assert '<mark>        raise ValueError("no &lt;/pre&gt;' in begin
    assert "<script" not in page
    assert page.index("<h2>ZeroDivisionError: division by zero</h2>") < page.index("is the direct cause of this one:")
    assert re.findall(r'<details class="own"><summary title=".*?">(.*?)</summary>', page) == [
        "shop.py, line 3, in divide",
        "shop.py, line 6",
        "shop.py, line 5, in divide",
    ]

    text = as_text(error, str(tmp_path))
    assert text.startswith(
        "500 Internal Server Error\n\nValueError: no </pre><script>alert(1)</script>\nshop.py, line 5, in divide\n    raise"
    )
    assert "direct cause of the following exception" in text


def test_an_error_while_another_was_handled_names_both(tmp_path: Path) -> None:
    page = as_html(raised(tmp_path, HANDLED), "GET /", str(tmp_path))

    assert (
        page.index("<h2>KeyError: 'a'</h2>")
        < page.index("While the error above was handled")
        < page.index("<h2>ValueError: invalid")
    )
    suppressed = as_html(raised(tmp_path, HANDLED.replace("int('x')", "raise ValueError from None")), "GET /", str(tmp_path))
    assert "KeyError" not in re.sub("<pre>.*?</pre>", "", suppressed, flags=re.DOTALL)


def test_a_group_shows_its_errors(tmp_path: Path) -> None:
    error = raised(tmp_path, GROUP)
    page = as_html(error, "GET /", str(tmp_path))

    assert "<h1>ExceptionGroup: both (2 sub-exceptions)</h1>" in page
    assert page.count("One of the errors in the group above:") == 2
    assert "shop.py, line 2, in one" in page
    assert "shop.py, line 4, in two" in page
    many = ExceptionGroup("many", [ValueError(number) for number in range(100)])
    assert as_html(many, "GET /", "/").count("<h2>") == MOST_ERRORS


def test_a_library_is_left_for_the_users_code(tmp_path: Path) -> None:
    page = as_html(raised(tmp_path, "json.loads('x')\n", json=json), "GET /", str(tmp_path))

    assert "<strong>shop.py, line 1</strong>" in page
    assert len(re.findall('<details class="library"><summary title="/.*/json/.*">json/', page)) >= 2
    assert "<summary>3 frames of libraries</summary>" in page


def test_an_endless_recursion_is_shortened(tmp_path: Path) -> None:
    page = as_html(raised(tmp_path, "def f():\n    return f()\nf()\n"), "GET /", str(tmp_path))

    assert page.count(">shop.py, line 2, in f</summary>") >= MOST_FRAMES - 2
    assert "frames in the middle are left out" in page


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise ValueError('\\udc80')", "ValueError: \\udc80"),
        ("raise ValueError('two\\nlines')", "ValueError: two\nlines"),
        ("class E(Exception):\n    def __str__(self):\n        raise OSError\nraise E", "shop.E: <exception str() failed>"),
        ("compile('x = (', 'other.py', 'exec')", "SyntaxError: '(' was never closed"),
        ("exec('1 / 0')", "ZeroDivisionError: division by zero"),
    ],
)
def test_unusual_errors(tmp_path: Path, source: str, shown: str) -> None:
    error = raised(tmp_path, source)

    assert f"\n{shown}\n" in as_text(error, str(tmp_path)).encode("utf-8", "backslashreplace").decode()
    page = as_html(error, "GET /", str(tmp_path)).encode("utf-8", "backslashreplace").decode()
    assert f"<h1>{shown}</h1>" in unescape(page)
    assert "<strong>shop.py, line" in page


def test_a_long_message_is_shortened(tmp_path: Path) -> None:
    error = raised(tmp_path, "raise ValueError('<' * 1_000_000)")

    assert is_long(error)
    assert len(as_text(error, str(tmp_path))) < 3 * MOST_TEXT
    page = unescape(as_html(error, "GET /", str(tmp_path)))
    assert len(page) < 5 * MOST_TEXT
    assert f"[{1_000_000 + len('ValueError: ') - MOST_TEXT} more characters, which the log has]</h1>" in page
    assert not is_long(ValueError("<" * (MOST_TEXT // 2)))


def test_an_error_whose_attributes_cannot_be_set_loses_frames_of_forkserve_too(tmp_path: Path) -> None:
    source = "class E(Exception):\n    def __setattr__(self, name, value):\n        raise TypeError\ntry:\n    read('x')\nexcept Exception:\n    raise E\n"
    error = raised(tmp_path, source, read=read_status)

    without_own_frames(error)
    assert "/forkserve/" not in as_html(error, "GET /", str(tmp_path))


def test_an_error_without_a_traceback_has_no_place() -> None:
    page = as_html(RuntimeError("nothing came"), "GET /", "/")

    assert "<h1>RuntimeError: nothing came</h1>\n<p></p>" in page
    assert as_text(RuntimeError("nothing came"), "/").startswith("500 Internal Server Error\n\nRuntimeError: nothing came\n\n")


def test_frames_of_forkserve_are_removed_wherever_they_are(tmp_path: Path) -> None:
    source = "def app(read):\n    try:\n        read('x')\n    except Exception as error:\n        raise LookupError from error\napp(read)\n"
    error = raised(tmp_path, source, read=read_status)
    cause = error.__cause__
    assert cause is not None
    error.__cause__.__context__ = error  # no end
    group = ExceptionGroup("", [error])  # type: ignore[list-item]

    without_own_frames(group)

    page = as_html(error, "GET /", str(tmp_path))
    assert "shop.py, line 3, in app" in page
    assert "/forkserve/" not in page

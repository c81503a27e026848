"""A traceback as a page and as plain text: the error first, then the place in the user's own code. In a worker."""

from __future__ import annotations

import linecache
import re
import traceback
from html import escape
from itertools import groupby
from types import TracebackType
from typing import TYPE_CHECKING, Final

from forkserve.http.app.faultpage import STYLE, policy_hash
from forkserve.http.app.faulttext import is_library

if TYPE_CHECKING:
    from collections.abc import Iterator
    from traceback import FrameSummary, TracebackException

AROUND: Final = 4
"""Lines of code that are shown before and after the one of a frame."""
MOST_FRAMES: Final = 60
"""Frames of one error that are shown; of more, as of an endless recursion, those in the middle are left out."""
MOST_ERRORS: Final = 16
"""Errors of a chain or group that are shown."""
MOST_TEXT: Final = 100_000
"""Characters of a message or of a traceback as text that are shown. A browser takes long to show millions."""
_STYLE: Final = f"""{STYLE}h2 {{ font-size: 1.1rem; overflow-wrap: anywhere; white-space: pre-wrap }}
h1 {{ white-space: pre-wrap }}
.library, summary:has(~ .library) {{ opacity: .65 }}
details > details {{ margin-left: 1.2rem }}
i {{ font-style: normal; opacity: .5; user-select: none }}
mark {{ background: #d333; color: inherit }}
"""
HTML: Final = ("Content-Type", "text/html; charset=utf-8")
CLOSED: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)
"""Headers that keep a traceback from pages of other servers, and from caches."""
HEADERS: Final = (
    HTML,
    (
        "Content-Security-Policy",
        f"default-src 'none'; style-src {policy_hash(_STYLE)}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    *CLOSED,
)
_PAGE: Final = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>{style}</style></head>
<body>
<h1>{headline}</h1>
<p>{place}</p>
{source}<p>The app raised this in <code>{request}</code>. It is shown because of <code>--debug</code>.</p>
{errors}
<details><summary>As text</summary>
<pre>{text}</pre></details>
</body>
</html>
"""
_INSTALLED: Final = re.compile(r".*/(?:site|dist)-packages/|.*/lib/python3[^/]*/")
"""What the name of a library's file begins with."""
_CAUSE: Final = "The error above is the direct cause of this one:"
_CONTEXT: Final = "While the error above was handled, this one was raised:"
_MEMBER: Final = "One of the errors in the group above:"


def without_own_frames(error: BaseException) -> None:
    """Remove forkserve's frames from the tracebacks of an error, and of those that it is about or came from."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        trace = None
        for step in reversed(list(_steps(one.__traceback__))):
            if str(step.tb_frame.f_globals.get("__name__")).partition(".")[0] != "forkserve":
                trace = TracebackType(trace, step.tb_frame, step.tb_lasti, step.tb_lineno)
        BaseException.with_traceback(one, trace)  # an assignment would call the class's own __setattr__, as of a frozen dataclass
        waiting += filter(None, (one.__cause__, one.__context__))
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions


def _steps(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def as_text(error: BaseException, folder: str) -> str:
    """Return the error, the place in the user's own code, and the traceback."""
    shown = traceback.TracebackException.from_exception(error)
    frame = _own_frame(shown, folder)
    place = f"{_place(frame, folder)}\n    {frame.line}\n" if frame is not None else ""
    return f"500 Internal Server Error\n\n{_headline(error)}\n{place}\n{_shortened(''.join(shown.format()))}"


def as_html(error: BaseException, request: str, folder: str) -> str:
    """Return the page.

    Args:
        error: Without frames of forkserve.
        request: The request line.
        folder: File names below it are shown without it.
    """
    shown = traceback.TracebackException.from_exception(error)
    frame = _own_frame(shown, folder)
    headline = _headline(error)
    return _PAGE.format(
        style=_STYLE,
        title=_escaped(headline.partition("\n")[0]),
        headline=_escaped(headline),
        place=f"<strong>{_escaped(_place(frame, folder))}</strong>" if frame is not None else "",
        source=_source(frame) if frame is not None else "",
        request=_escaped(request),
        errors="\n".join(_section(link, one, folder) for link, one in _errors(shown)),
        text=_escaped(_shortened("".join(shown.format()))),
    )


def is_long(error: BaseException) -> bool:
    """Return whether the text of a traceback would be cut off."""
    return sum(map(len, traceback.TracebackException.from_exception(error).format())) > MOST_TEXT


def _shortened(text: str) -> str:
    left_out = len(text) - MOST_TEXT
    return text if left_out <= 0 else f"{text[:MOST_TEXT]}\n[{left_out} more characters, which the log has]"


def _escaped(text: str) -> str:
    return escape(text, quote=False)


def _headline(error: BaseException) -> str:
    lines = traceback.format_exception_only(error)  # of a syntax error also the code
    return _shortened("".join(lines[-1:] if isinstance(error, SyntaxError) else lines).rstrip())


def _errors(shown: TracebackException) -> list[tuple[str, TracebackException]]:
    """Return the errors with how each is linked to the one before it, in the order in which they were raised."""
    chain: list[tuple[str, TracebackException]] = []
    one: TracebackException | None = shown
    while one is not None and len(chain) < MOST_ERRORS:
        if one.__cause__ is not None:
            chain.append((_CAUSE, one))
            one = one.__cause__
        elif one.__context__ is not None and not one.__suppress_context__:
            chain.append((_CONTEXT, one))
            one = one.__context__
        else:
            chain.append(("", one))
            one = None
    found: list[tuple[str, TracebackException]] = []
    for link, each in reversed(chain):
        found.append((link, each))
        found += ((_MEMBER, member) for member in _members(each))
    return found[:MOST_ERRORS]


def _members(shown: TracebackException) -> Iterator[TracebackException]:
    for one in shown.exceptions or ():
        yield one
        yield from _members(one)


def _own_frame(shown: TracebackException, folder: str) -> FrameSummary | None:
    """Return the last frame of the user's own code in an error, or of one that it wraps or is about; without any, the last."""
    errors = [one for _, one in reversed(_errors(shown))]
    errors.sort(key=lambda one: one is not shown)  # the error itself first
    for one in errors:
        for frame in reversed(one.stack):
            if not is_library(frame.filename, folder):
                return frame
    return shown.stack[-1] if shown.stack else None


def _place(frame: FrameSummary, folder: str) -> str:
    name = f", in {frame.name}" if frame.name != "<module>" else ""
    file = _INSTALLED.sub("", frame.filename.removeprefix(f"{folder}/"))
    return f"{file}, line {frame.lineno}{name}"


def _section(link: str, shown: TracebackException, folder: str) -> str:
    parts = [f"<p>{link}</p>"] if link else []
    parts.append(f"<h2>{_escaped(_shortened(''.join(shown.format_exception_only()).rstrip()))}</h2>")
    left_out = len(shown.stack) - MOST_FRAMES
    frames = list(shown.stack)
    if left_out > 0:
        frames[MOST_FRAMES // 2 : -(MOST_FRAMES // 2)] = []
        parts.append(f"<p>{left_out} frames in the middle are left out.</p>")
    for of_library, run in groupby(frames, lambda one: is_library(one.filename, folder)):
        shown_run = [_frame(one, folder) for one in run]
        if of_library and len(shown_run) > 1:
            shown_run = [f"<details><summary>{len(shown_run)} frames of libraries</summary>", *shown_run, "</details>"]
        parts += shown_run
    return "\n".join(parts)


def _frame(frame: FrameSummary, folder: str) -> str:
    kind = "library" if is_library(frame.filename, folder) else "own"
    name, file = _escaped(_place(frame, folder)), escape(frame.filename)
    return f'<details class="{kind}"><summary title="{file}">{name}</summary>\n{_source(frame)}</details>'


def _source(frame: FrameSummary) -> str:
    """Return the lines of code around a frame's, or only the frame's if there is no file."""
    number = frame.lineno or 0
    lines = linecache.getlines(frame.filename)
    if not 0 < number <= len(lines):
        return f"<pre>{_escaped(frame.line)}</pre>\n" if frame.line else ""
    last = max(number, min(frame.end_lineno or number, number + AROUND))
    first = max(1, number - AROUND)
    shown = []
    for place, line in enumerate(lines[first - 1 : last + AROUND], first):
        text = _escaped(line.rstrip("\n"))
        shown.append(f"<i>{place:{len(str(last + AROUND))}} </i>" + (f"<mark>{text}</mark>" if number <= place <= last else text))
    return "<pre>" + "\n".join(shown) + "</pre>\n"

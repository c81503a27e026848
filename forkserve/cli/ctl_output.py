"""The output of `forkserve ctl`: the results of its commands as text.

Any part of a result may be from an app or from a request, so every part is escaped. Any part may be missing, since the server may
have another version.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from forkserve.base.logs import printable
from forkserve.cli import ctl_status
from forkserve.cli.cells import Row, cell, duration, rows_of
from forkserve.cli.ctl_local import server_lines
from forkserve.prefork.ipc.pending import WITHOUT_WORDS

WIDTH = 80  # columns of a usual terminal
WIDEST_HEAD = 24  # columns in front of the replies of a call
WIDEST_USAGE = 30  # columns in front of the help of a command; a longer usage has a line of its own


def show(command: str, result: Any, width: int | None = None) -> str:
    """Return the result of a command as lines of text; `width`: the columns of the terminal, for those that are fitted to it."""
    if command in _FITTED and result is not None:
        lines = _FITTED[command](result, width)
    else:
        lines = _SHOWN.get(command, _plain)(result) if result is not None else []
    return "".join(line.rstrip() + "\n" for line in lines) or f"{command}: done\n"


def reasons(result: Any) -> list[str]:
    """Return the app's own traceback in the result of a failed command, as lines to print after the error."""
    traceback = result.get("traceback") if isinstance(result, dict) else None
    return _text(traceback) if isinstance(traceback, str) else []


def _call(replies: Any) -> list[str]:
    """Show each different reply once, with the workers that gave it: first what most workers say, and last what has failed."""
    groups: dict[str, list[Row]] = {}
    for reply in rows_of(replies):
        same = [reply.get(key) for key in ("status", "value", "error")]
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(reply)
    ordered = sorted(groups.values(), key=lambda rows: (rows[0].get("status") != "ok", -len(rows)))
    heads = [_workers(rows) for rows in ordered]
    width = min(max(map(len, heads), default=0), WIDEST_HEAD)
    lines = []
    for head, rows in zip(heads, ordered, strict=True):
        shown, block = _reply(rows[0], WIDTH - max(len(head), width) - 1)
        lines += [f"{head.ljust(width)} {shown}", *block]
    return lines or ["there was no ready worker"]


def _workers(rows: Sequence[Row]) -> str:
    """Return which workers have given a reply, and how long the slowest one took, if that was long."""
    ids = sorted(row["id"] for row in rows if isinstance(row.get("id"), int) and row["id"])
    slowest = max((row["seconds"] for row in rows if isinstance(row.get("seconds"), int | float)), default=0)
    names = "no worker" if not ids else f"worker{'s' * (len(ids) > 1)} {_ranges(ids)}"
    return f"{names} ({duration(slowest)}):" if slowest >= 1 else f"{names}:"


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers in short form: `1-3, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _reply(reply: Row, room: int) -> tuple[str, list[str]]:
    """Return what a worker has replied: what fits behind its name, and the lines below."""
    status, value, error = reply.get("status"), reply.get("value"), reply.get("error")
    if isinstance(error, dict):
        kind = "" if status == "unknown" else f"{cell(error.get('type'))}: "
        block = _text(error["traceback"]) if isinstance(error.get("traceback"), str) else []
        return f"{cell(status)}: {kind}{cell(error.get('message'))}", block
    if status != "ok":
        return f"{cell(status)}: {WITHOUT_WORDS.get(str(status), cell(value))}", []
    if isinstance(value, str) and "\n" in value.rstrip("\n"):
        return "", _text(value)
    shown = printable(json.dumps(value, ensure_ascii=False))
    if len(shown) <= room or not isinstance(value, dict | list) or not value:
        return shown, []
    items = [json.dumps(one, ensure_ascii=False) for one in (value if isinstance(value, list) else value.values())]
    if isinstance(value, dict):
        items = [f"{json.dumps(key, ensure_ascii=False)}: {item}" for key, item in zip(value, items, strict=True)]
    return shown[0], [*(f"  {printable(item)}," for item in items[:-1]), f"  {printable(items[-1])}", shown[-1]]


def _commands(result: Any) -> list[str]:
    if not isinstance(result, dict):
        return _described(result)
    groups = ([printable(f"{head}:"), *_described(rows), ""] for head, rows in result.items())
    return [line for group in groups for line in group][:-1]


def _described(commands: Any) -> list[str]:
    rows = rows_of(commands)
    names = [row.get("name") for row in rows]
    shown = []
    for row in rows:
        usage, about, slots = f"{row.get('name')} {row.get('usage') or ''}".strip(), row.get("help") or "", row.get("workers")
        if names.count(row.get("name")) > 1 and isinstance(slots, list):
            about = f"{about} ({_workers([{'id': slot} for slot in slots]).rstrip(':')})".strip()
        shown.append([usage, about])
    width = max((len(usage) for usage, _ in shown if len(usage) <= WIDEST_USAGE), default=0)
    lines = []
    for usage, about in shown:
        indent = " " * (width + 2)
        text = textwrap.wrap(printable(about), max(WIDTH - len(indent), 20)) or [""]
        first = printable(usage)
        if len(first) > width:
            lines += [first, *(indent + line for line in text if line)]
        else:
            lines += [f"{first.ljust(width)}  {text[0]}", *(indent + line for line in text[1:])]
    return lines


def _stacks(result: Any) -> list[str]:
    lines = []
    for row in rows_of(result):
        error = row.get("error")
        text = error.get("message") if error else row.get("stacks", row.get("value"))
        lines += [f"worker {cell(row.get('id'))} (pid {cell(row.get('pid'))}):", *_text(text), ""]
    return lines[:-1]


def _reload(result: Any) -> list[str]:
    if not isinstance(result, dict) or not isinstance(result.get("canary"), dict):
        return _plain(result)
    from forkserve.prefork.policy.judgement import row_text  # noqa: PLC0415 - few commands need it

    canary = result["canary"]
    first = _plain({key: value for key, value in result.items() if key != "canary"})
    rows = [f"{side} {'worker' if side == 'new' else 'workers'}: {row_text(canary[side])}" for side in ("new", "old")]
    return [*first, f"{canary['decision']}: {canary['reason']}", *rows]


def _plain(result: Any) -> list[str]:
    if isinstance(result, dict):
        shown = {key: value for key, value in result.items() if key != "traceback"}  # see `reasons`
        return [", ".join(f"{printable(str(key))} {cell(value)}" for key, value in shown.items())]
    return _text(result)


def _text(value: Any) -> list[str]:
    """Return text of several lines, each escaped and indented."""
    text = value if isinstance(value, str) else cell(value)
    return ["  " + printable(line) for line in text.rstrip("\n").split("\n")]


_SHOWN: Mapping[str, Callable[[Any], list[str]]] = {
    "reload": _reload,
    "call": _call,
    "reopen-logs": _call,
    "commands": _commands,
    "stacks": _stacks,
}
_FITTED: Mapping[str, Callable[[Any, int | None], list[str]]] = {
    "status": ctl_status.lines,
    "list": server_lines,
}

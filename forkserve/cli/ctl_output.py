"""The output of `forkserve ctl`: the results of its commands as text.

Any part of a result may be from an app or from a request, so every part is escaped. Any part may be missing, since the server may
have another version.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from forkserve.base.logs import printable
from forkserve.prefork.ipc.pending import WITHOUT_WORDS

Row = Mapping[str, Any]

WORKER_HEADS = ("ID", "PID", "PORT", "GEN", "STATE", "AGE", "REQUESTS", "IN-FLIGHT", "CONNS", "MEMORY", "LAST-EXIT")
MOLD_HEADS = ("MOLD", "GEN", "STATE", "MEMORY", "LAST-EXIT")


WIDTH = 80  # columns of a usual terminal
WIDEST_HEAD = 24  # columns in front of the replies of a call
WIDEST_USAGE = 30  # columns in front of the help of a command; a longer usage has a line of its own


def show(command: str, result: Any) -> str:
    """Return the result of a command as lines of text."""
    lines = _SHOWN.get(command, _plain)(result) if result is not None else []
    return "".join(line.rstrip() + "\n" for line in lines) or f"{command}: done\n"


def reasons(result: Any) -> list[str]:
    """Return the app's own traceback in the result of a failed command, as lines to print after the error."""
    traceback = result.get("traceback") if isinstance(result, dict) else None
    return _text(traceback) if isinstance(traceback, str) else []


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return rows below their heads, in columns."""
    cells = [list(heads), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in cells]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def duration(seconds: float | None) -> str | None:
    """Return seconds in at most two units: `45s`, `3m 20s`, `2h 5m`, `4d 3h`."""
    if seconds is None:
        return None
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    for size, unit, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // smaller}{part}"
    return f"{whole}s"


def _size(size: int | None) -> str | None:
    return None if size is None else f"{size / (1 << 20):.1f}M"


def _status(result: Row) -> list[str]:
    workers = _rows(result.get("workers"))
    ready = sum(row.get("state") == "ready" for row in workers)
    facts = [
        f"{_cell(result.get('state'))}",
        f"{ready} of {_cell(result.get('wanted'))} workers ready",
        f"generation {_cell(result.get('generation'))}",
        f"up {duration(result.get('uptime_s')) or '-'}",
    ]
    lines = [
        f"{_cell(result.get('name'))}: {', '.join(facts)}",
        f"{_cell(result.get('app'))}, pid {_cell(result.get('pid'))}, forkserve {_cell(result.get('version'))}{_reader(result)}",
    ]
    if last := result.get("last_reload"):
        outcome = "done" if last.get("ok") else f"failed: {_cell(last.get('error'))}"
        lines.append(f"last reload (generation {_cell(last.get('generation'))}, {duration(last.get('seconds'))}): {outcome}")
    if lost := result.get("log_lines_lost"):
        lines.append(f"log lines lost: {_cell(lost)}")
    for listener in _rows(result.get("listeners")):
        owner = "all workers" if listener.get("slot") is None else f"worker {_cell(listener['slot'])}"
        notes = "".join(text for key, text in (("down", ", down"), ("lost", ", its file is gone")) if listener.get(key))
        lines.append(f"listening on {_cell(listener.get('address'))} ({owner}{notes})")
    molds = ([row.get("pid"), row.get("generation"), row.get("state"), *_ends(row)] for row in _rows(result.get("molds")))
    shown = table(MOLD_HEADS, molds)
    return [*lines, "", *table(WORKER_HEADS, (_worker(row) for row in workers)), *(["", *shown] if len(shown) > 1 else [])]


def _reader(result: Row) -> str:
    return f" (reader: {_cell(result['reader'])})" if result.get("reader") else ""


def _worker(row: Row) -> list[object]:
    plain = [row.get(key) for key in ("id", "pid", "port", "generation", "state")]
    counts = [row.get(key) for key in ("requests", "in_flight", "connections")]
    return [*plain, duration(row.get("age_s")), *counts, *_ends(row)]


def _ends(row: Row) -> list[object]:
    """Return the last columns: the memory, and the last exit."""
    memory = row.get("pss_bytes") if row.get("pss_bytes") is not None else row.get("rss_bytes")
    return [_size(memory), _last_exit(row.get("last_exit"))]


def _last_exit(last: Row | None) -> str | None:
    if not last:
        return None
    if last.get("reason"):
        return str(last["reason"])
    return f"code {last.get('code')}" if last.get("signal") is None else f"signal {last['signal']}"


def _call(replies: Any) -> list[str]:
    """Show each different reply once, with the workers that gave it: first what most workers say, and last what has failed."""
    groups: dict[str, list[Row]] = {}
    for reply in _rows(replies):
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
        kind = "" if status == "unknown" else f"{_cell(error.get('type'))}: "
        block = _text(error["traceback"]) if isinstance(error.get("traceback"), str) else []
        return f"{_cell(status)}: {kind}{_cell(error.get('message'))}", block
    if status != "ok":
        return f"{_cell(status)}: {WITHOUT_WORDS.get(str(status), _cell(value))}", []
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
    rows = _rows(commands)
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
    for row in _rows(result):
        error = row.get("error")
        text = error.get("message") if error else row.get("stacks", row.get("value"))
        lines += [f"worker {_cell(row.get('id'))} (pid {_cell(row.get('pid'))}):", *_text(text), ""]
    return lines[:-1]


def _plain(result: Any) -> list[str]:
    if isinstance(result, dict):
        shown = {key: value for key, value in result.items() if key != "traceback"}  # see `reasons`
        return [", ".join(f"{printable(str(key))} {_cell(value)}" for key, value in shown.items())]
    return _text(result)


def _text(value: Any) -> list[str]:
    """Return text of several lines, each escaped and indented."""
    text = value if isinstance(value, str) else _cell(value)
    return ["  " + printable(line) for line in text.rstrip("\n").split("\n")]


def _rows(value: Any) -> list[Row]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


_SHOWN: Mapping[str, Callable[[Any], list[str]]] = {
    "status": _status,
    "call": _call,
    "reopen-logs": _call,
    "commands": _commands,
    "stacks": _stacks,
}

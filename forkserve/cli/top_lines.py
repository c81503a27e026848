"""What `forkserve top` shows: lines of text, from the view of a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from forkserve.cli.cells import Row, cell, duration, fitted, line, size
from forkserve.cli.ctl_status import last_exit, milliseconds, number, state

KEYS: Final = "r reload   + - scale   k restart   s stacks   arrows select   q quit"
_BARS: Final = " ▁▂▃▄▅▆▇█"
_PLAIN_BARS: Final = " .:-=+*#@"
_HEADS: Final = (
    *("ID", "PID", "STATE", "GEN", "REQ/S", "P95", "5XX/S", "BUSY", "CPU", "LAG", "IN", "OLDEST", "AGE", "MEMORY", "CONNS"),
    "LAST-EXIT",
)
_IMPORTANCE: Final = (
    *("ID", "STATE", "REQ/S", "P95", "BUSY", "IN", "OLDEST", "5XX/S", "PID", "MEMORY", "LAG", "GEN", "CPU", "AGE", "LAST-EXIT"),
    "CONNS",
)


@dataclass(frozen=True, slots=True)
class Page:
    """Lines for a screen; `head` is above the table, whose first line has the names of its columns."""

    head: list[tuple[str, str]]  # text and style
    table: list[str]
    notes: list[tuple[str, str]]


def page(shown: Row, rates: Sequence[float], width: int, *, ascii_only: bool = False) -> Page:
    """Return the page of a server.

    Args:
        shown: The view of the server.
        rates: The requests per second in the last seconds, the latest last.
        width: The columns of the screen.
        ascii_only: The terminal has no other characters.
    """
    wrong = shown["state"] not in ("running", "reloading")
    first = [
        f"{cell(shown['name'])}: {cell(shown['state'])}",
        f"{cell(shown['ready'])} of {cell(shown['wanted'])} ready",
        f"generation {cell(shown['generation'])}",
        f"up {duration(shown['uptime_s']) or '-'}",
    ]
    traffic = (
        f"{number(shown['rate'])} req/s   5xx {number(shown['errors'])}/s   4xx {number(shown['client_errors'])}/s   "
        f"p50 {milliseconds(shown['p50_ms'])}   p95 {milliseconds(shown['p95_ms'])}   p99 {milliseconds(shown['p99_ms'])}"
    )
    room = width - len(traffic) - 3
    if room >= 5 and len(rates) > 1:
        traffic += "   " + bars(rates[-min(room, 30) :], ascii_only=ascii_only)
    load = (
        f"busy {_percent(shown['busy'])}   in flight {cell(shown['in_flight'])}   connections {cell(shown['connections'])}   "
        f"queue p95 {milliseconds(shown['queue_p95_ms'])}{_accept_queue(shown)}"
    )
    head = [(", ".join(first), "bold red" if wrong else "bold"), (traffic, "bold" if shown["errors"] else ""), (load, "")]
    head += [(text, style) for text, style in _events(shown) if text]
    workers = shown["workers"]
    table = fitted(_HEADS, [_worker(row, shown) for row in workers], _IMPORTANCE, width, ("LAST-EXIT", 10))
    return Page(
        [(line(text, width), style) for text, style in head], table, [(line(one, width), "red") for one in _stuck(workers)]
    )


def plain(shown: Row, at: str) -> str:
    """Return a server in one line, which begins with the time."""
    stuck = [cell(row["id"]) for row in shown["workers"] if row["stuck"]]
    facts = [
        f"{cell(shown['state'])} {cell(shown['ready'])}/{cell(shown['wanted'])}",
        f"gen {cell(shown['generation'])}",
        f"{number(shown['rate'])} req/s",
        f"5xx {number(shown['errors'])}/s",
        f"p50 {milliseconds(shown['p50_ms'])} p95 {milliseconds(shown['p95_ms'])} p99 {milliseconds(shown['p99_ms'])}",
        f"busy {_percent(shown['busy'])}",
        f"in flight {cell(shown['in_flight'])}",
        *([f"queue {waiting}"] if (waiting := _waiting(shown)) else []),
        *([f"stuck: {', '.join(stuck)}"] if stuck else []),
    ]
    oldest = max(
        (row for row in shown["workers"] if row["oldest_request_s"]), key=lambda row: row["oldest_request_s"], default=None
    )
    if oldest is not None and oldest["oldest_request_s"] >= 1:
        facts.append(f"oldest {duration(oldest['oldest_request_s'])} (worker {cell(oldest['id'])}: {_oldest(oldest)})")
    return f"{at} {cell(shown['name'])}: {', '.join(facts)}"


def bars(values: Sequence[float], *, ascii_only: bool = False) -> str:
    """Return numbers as bars, one character each; the highest is the greatest number."""
    marks = _PLAIN_BARS if ascii_only else _BARS
    most = max(values, default=0) or 1
    return "".join(marks[min(len(marks) - 1, round(value / most * (len(marks) - 1)))] for value in values)


def _worker(row: Row, shown: Row) -> list[object]:
    facts = {"now": shown["time"]}
    return [
        *(row["id"], row["pid"], state(row, facts), row["generation"], number(row["rate"]), milliseconds(row["p95_ms"])),
        *(number(row["errors"]), _percent(row["busy"]), _percent(row["cpu"]), milliseconds(row["lag_ms"]), row["in_flight"]),
        *(duration(row["oldest_request_s"]), duration(row["age_s"]) if row["pid"] is not None else None),
        *(size(row["pss_bytes"] or row["rss_bytes"]), row["connections"], last_exit(row["last_exit"], facts)),
    ]


def _events(shown: Row) -> list[tuple[str, str]]:
    """Return what is going on or wrong, each with its style."""
    found: list[tuple[str, str]] = []
    now = shown["time"]
    if isinstance(reload := shown["reload"], Mapping):
        replaced, wanted = reload.get("replaced") or 0, reload.get("of") or 0
        since = f", {duration(max(0.0, now - reload['since']))}" if isinstance(now, int | float) and reload.get("since") else ""
        bar = f"[{'#' * replaced}{'.' * max(0, wanted - replaced)}] " if 0 < wanted <= 40 else ""
        found.append((f"reload: generation {cell(reload.get('generation'))} {bar}{replaced} of {wanted}{since}", "yellow"))
    elif isinstance(last := shown["last_reload"], Mapping) and not last.get("ok"):
        found.append((f"last reload failed (generation {cell(last.get('generation'))}): {cell(last.get('error'))}", "red"))
    if isinstance(upstream := shown["upstream"], Mapping) and not upstream.get("in_step"):
        found.append((f"nginx is not in step: {cell(upstream.get('error') or upstream.get('path'))}", "red"))
    if isinstance(ends := shown["certificate_expires"], int | float) and isinstance(now, int | float) and ends - now < 7 * 86400:
        left = f"expires in {duration(ends - now)}" if ends > now else "has EXPIRED"
        found.append((f"the certificate {left}", "red"))
    if restarts := shown["restarts"]:
        found.append(("restarts: " + ", ".join(f"{cell(count)} {cell(reason)}" for reason, count in restarts.items()), "yellow"))
    return found


def _stuck(workers: Sequence[Row]) -> list[str]:
    return [
        f"worker {cell(row['id'])} is stuck for {duration(row['silent_s'])}: {_oldest(row)}" for row in workers if row["stuck"]
    ]


def _oldest(row: Row) -> str:
    """Return the oldest request of a worker."""
    return next((cell(one.get("line")) for one in row["requests_in_hand"]), "no request in hand")


def _waiting(shown: Row) -> int:
    return sum(one.get("accept_queue") or 0 for one in shown["listeners"])


def _accept_queue(shown: Row) -> str:
    return f"   {_waiting(shown)} wait to be accepted" if _waiting(shown) else ""


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{part:.0%}"

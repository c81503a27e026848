"""The status of a server as text: `forkserve ctl status`, and the plain form of `forkserve top`.

Any part may be missing, since the server may have another version, and may be from an app or a request, so it is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from forkserve.cli.cells import Row, cell, duration, fitted, line, rows_of, size, table
from forkserve.ops.view import view

# By importance: in a narrow terminal, the last ones are left out. In the table, the order is that of HEADS.
_HEADS: Final = (
    "ID",
    "PID",
    "PORT",
    "GEN",
    "STATE",
    "AGE",
    "REQUESTS",
    "IN-FLIGHT",
    "OLDEST",
    "LAG",
    "CONNS",
    "MEMORY",
    "LAST-EXIT",
)
_IMPORTANCE: Final = (
    *("ID", "STATE", "LAST-EXIT", "OLDEST", "IN-FLIGHT", "PID", "REQUESTS", "MEMORY", "GEN", "AGE", "LAG", "PORT", "CONNS"),
)
_SHORTENED: Final = ("LAST-EXIT", 12)  # the column that may be cut, and the columns that it keeps
_MOLD_HEADS: Final = ("MOLD", "GEN", "STATE", "MEMORY", "LAST-EXIT")
_NOTABLE: Final = 1.0  # seconds: an older request is listed


def lines(result: Row, width: int | None = None, before: Row | None = None) -> list[str]:
    """Return a status as lines.

    Args:
        result: The status.
        width: Columns that no line exceeds; None: no limit.
        before: An earlier status, for rates; None: the numbers since the start.
    """
    shown = view(before, result)
    text = [*_head(result, shown), *_traffic(shown, result, since_start=before is None), *_facts(result), *_addresses(result)]
    workers = shown["workers"]
    text += ["", *fitted(_HEADS, [_worker(row, result) for row in workers], _IMPORTANCE, width, _SHORTENED)]
    molds = [
        [row.get("pid"), row.get("generation"), row.get("state"), *_ends(row, result)] for row in rows_of(result.get("molds"))
    ]
    if molds:
        text += ["", *table(_MOLD_HEADS, molds)]
    requests = list(_requests(workers))
    return [line(one, width) for one in [*text, *([""] if requests else []), *requests]]


def _head(result: Row, shown: Row) -> Iterator[str]:
    state = cell(result.get("state"))
    if since := _ago(result.get("stopping_since"), result):
        state += f" for {since}"
    facts = [
        state,
        f"{cell(shown['ready'])} of {cell(result.get('wanted'))} workers ready",
        *([f"{stuck} stuck"] if (stuck := sum(row["stuck"] for row in shown["workers"])) else []),
        f"generation {cell(result.get('generation'))}",
        f"up {duration(result.get('uptime_s')) or '-'}",
    ]
    yield f"{cell(result.get('name'))}: {', '.join(facts)}"
    reader = f" (reader: {cell(result['reader'])})" if result.get("reader") else ""
    yield f"{cell(result.get('app'))}, pid {cell(result.get('pid'))}, forkserve {cell(result.get('version'))}{reader}"


def _traffic(shown: Row, result: Row, *, since_start: bool) -> Iterator[str]:
    times = [f"{name} {milliseconds(shown[key])}" for name, key in (("p50", "p50_ms"), ("p95", "p95_ms"), ("p99", "p99_ms"))]
    if since_start:
        totals = result.get("totals")
        count = totals.get("requests") if isinstance(totals, Mapping) else None
        if count and isinstance(totals, Mapping):
            failed = sum(n for code, n in (totals.get("responses") or {}).items() if code[:1] == "5" and isinstance(n, int))
            yield f"since the start: {count} request{'s' * (count != 1)}, {failed} answered with 5xx, {', '.join(times)}"
        return
    rates = [f"{number(shown['rate'])} requests/s", f"{number(shown['errors'])} errors/s", *times]
    if shown["busy"] is not None:
        rates.append(f"busy {shown['busy']:.0%}")
    yield "now: " + ", ".join(rates)


def _facts(result: Row) -> Iterator[str]:
    if isinstance(reload := result.get("reload"), Mapping):
        done = f"{cell(reload.get('replaced'))} of {cell(reload.get('of'))} workers replaced"
        since = _ago(reload.get("since"), result)
        yield f"reload under way (generation {cell(reload.get('generation'))}{f', {since}' * bool(since)}): {done}"
    if isinstance(last := result.get("last_reload"), Mapping):
        outcome = "done" if last.get("ok") else f"failed: {cell(last.get('error'))}"
        yield f"last reload (generation {cell(last.get('generation'))}, {duration(last.get('seconds'))}): {outcome}"
    if isinstance(restarts := result.get("restarts"), Mapping) and restarts:
        yield "restarts: " + ", ".join(f"{cell(count)} {cell(reason)}" for reason, count in restarts.items())
    if isinstance(upstream := result.get("upstream"), Mapping):
        wrong = f"not in step: {cell(upstream['error'])}" if upstream.get("error") else "not in step"
        yield f"upstream {cell(upstream.get('path'))}: {'in step' if upstream.get('in_step') else wrong}"
    left = _ago(result.get("certificate_expires"), result, ahead=True)
    if left is not None:
        yield f"certificate: expires in {left}" if result["certificate_expires"] > result["now"] else "certificate: EXPIRED"
    if lost := result.get("log_lines_lost"):
        yield f"log lines lost: {cell(lost)}"


def _addresses(result: Row) -> Iterator[str]:
    for listener in rows_of(result.get("listeners")):
        owner = "all workers" if listener.get("slot") is None else f"worker {cell(listener['slot'])}"
        notes = "".join(text for key, text in (("down", ", down"), ("lost", ", its file is gone")) if listener.get(key))
        waiting = listener.get("accept_queue")
        queue = f", {cell(waiting)} of {cell(listener.get('accept_queue_limit'))} connections wait" if waiting else ""
        yield f"listening on {cell(listener.get('address'))} ({owner}{notes}{queue})"


def _worker(row: Row, result: Row) -> list[object]:
    counts = [row.get(key) for key in ("requests", "in_flight")]
    times = [duration(row.get("oldest_request_s")), milliseconds(row.get("lag_ms"))]
    age = duration(row.get("age_s")) if row.get("pid") is not None else None
    return [
        *(row.get(key) for key in ("id", "pid", "port", "generation")),
        *(state(row, result), age, *counts, *times, row.get("connections"), *_ends(row, result)),
    ]


def state(row: Row, result: Row) -> str:
    """Return the state of a worker: with the time until the next try, or since the last sign of life of one that is stuck."""
    if row.get("stuck"):
        return f"stuck {duration(row.get('silent_s'))}"
    left = _ago(row.get("next_try"), result, ahead=True)
    return f"{cell(row.get('state'))} {left}" if left is not None else cell(row.get("state"))


def _ends(row: Row, result: Row) -> list[object]:
    """Return the last columns: the memory, and the last exit."""
    memory = row.get("pss_bytes") if row.get("pss_bytes") is not None else row.get("rss_bytes")
    return [size(memory), last_exit(row.get("last_exit"), result)]


def last_exit(last: object, result: Row) -> str | None:
    """Return why a process ended, and how long ago: `SIGKILL, 20s ago`."""
    if not isinstance(last, Mapping):
        return None
    how, since = str(last.get("reason") or ""), _ago(last.get("at"), result)
    if how in ("", "killed") and last.get("signal") is not None:
        how = _signal_name(last["signal"])
    elif how in ("", "ended") and (last.get("code") or not how):
        how = f"code {last.get('code')}"
    return f"{how}, {since} ago" if since else how


def _signal_name(number: int) -> str:
    import signal  # noqa: PLC0415 - only if one was killed

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _requests(workers: Sequence[Row]) -> Iterator[str]:
    """Return the requests that are old, or in hand in a worker that is stuck."""
    for row in workers:
        for request in rows_of(row.get("requests_in_hand")):
            age = request.get("age_s")
            if isinstance(age, int | float) and (row["stuck"] or age >= _NOTABLE):
                yield f"worker {cell(row.get('id'))}: in hand for {duration(age)}: {cell(request.get('line'))}"


def _ago(at: object, result: Row, *, ahead: bool = False) -> str | None:
    """Return how long ago, or how far ahead, a unix time is; None if it is not known."""
    now = result.get("now")
    if not isinstance(at, int | float) or not isinstance(now, int | float):
        return None
    return duration(max(0.0, at - now if ahead else now - at))


def milliseconds(value: float | None) -> str:
    """Return milliseconds in a few characters: `0.4ms`, `12ms`, `3.1s`."""
    if value is None:
        return "-"
    return f"{value:.1f}ms" if value < 10 else f"{value:.0f}ms" if value < 1000 else duration(value / 1000) or "-"


def number(value: float | None) -> str:
    """Return a number in a few characters."""
    return "-" if value is None else f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"

"""Tables in Markdown, and pictures, of results."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from benchmarks.plot import Bar, bars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.results import Results

INTERFACES = {"wsgi": "WSGI", "asgi": "ASGI", "static": "no Python"}
DASH = "\N{EN DASH}"


def number(value: float | None) -> str:
    """Return a value with three digits or more, or nothing."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def row(cells: Iterable[str]) -> str:
    """Return a row of a table."""
    return "| " + " | ".join(cells) + " |"


def table(heads: list[str], rows: Iterable[list[str]]) -> str:
    """Return a table whose cells, but for the first of a row, are numbers."""
    return "\n".join([row(heads), row(["---", *["--:"] * (len(heads) - 1)]), *map(row, rows)]) + "\n"


def name(server: str) -> str:
    """Return the name of a server, without its interface."""
    return server.rpartition(" ")[0]


def title(results: Results, case: str) -> str:
    """Return the title of a case, with its unit if that is not the usual one."""
    unit = results.units[case]
    return results.titles[case] if unit == "us" else f"{results.titles[case]}, {unit}"


def ours(server: str) -> bool:
    """Return whether it is forkserve."""
    return server.startswith("forkserve")


def cell(results: Results, case: str, server: str) -> str:
    """Return the median with least and greatest value, and the number of failures."""
    values, failures = results.values(case, server), results.failures(case, server)
    if not values:
        return "failed" if failures else ""
    text = f"{number(results.median(case, server))} ({number(min(values))}{DASH}{number(max(values))})"
    return f"{text}, {failures} failed" if failures else text


def ratio(results: Results, case: str, server: str) -> str:
    """Return forkserve's value in proportion to that of a server with the same interface."""
    found = results.ratio(case, f"forkserve {server.rpartition(' ')[2]}", server)
    return "" if found is None else f"{found:.2f}"


def case_table(results: Results, case: str) -> str:
    """Return everything that is known about one case, by server."""
    rows = []
    for interface in INTERFACES:
        for server in results.servers(case, interface):
            rate, others, switches = (results.median_of(field, case, server) for field in ("rate", "others", "switches"))
            rows.append(
                [
                    server,
                    cell(results, case, server),
                    ratio(results, case, server),
                    number(rate),
                    "" if others is None else f"{others:.1%}",
                    "" if switches is None else f"{switches:.2f}",
                ]
            )
    return table([title(results, case), results.units[case], "forkserve / it", "requests/s", "others", "switches"], rows)


def matrix(results: Results, interface: str, of: Callable[[Results, str, str], str], *, peers: bool = False) -> str:
    """Return a table with a row for each case and a column for each server of an interface."""
    cases = [case for case in results.samples if results.servers(case, interface)]
    servers = list(dict.fromkeys(server for case in cases for server in results.servers(case, interface)))
    if peers:
        servers = [server for server in servers if server != f"forkserve {interface}"]
    rows = [[title(results, case), *(of(results, case, server) for server in servers)] for case in cases]
    return table(["", *map(name, servers)], rows)


def others(results: Results) -> float:
    """Return the largest of all medians of the share that others had of the machine."""
    shares = [results.median_of("others", case, server) for case, servers in results.samples.items() for server in servers]
    return max((share for share in shares if share is not None), default=0.0)


def conditions(results: Results) -> str:
    """Return where and when it was measured."""
    versions = ", ".join(f"{module} {version}" for module, version in sorted(results.versions.items()))
    return (
        f"Measured on {results.date}: {results.machine}. {results.rounds} rounds of {results.seconds:g} s for each server and"
        f" case, servers in turns. Other programs took at most {others(results):.1%} of the cores (the largest median)."
        f" {versions}.\n"
    )


def page_tables(results: Results) -> str:
    """Return what the page shows."""
    parts = [conditions(results)]
    for interface, text in INTERFACES.items():
        if not any(results.servers(case, interface) for case in results.samples):
            continue
        parts.append(f"### {text}\n\n{matrix(results, interface, cell)}")
        if interface != "static":
            parts.append(f"forkserve's value in proportion to each:\n\n{matrix(results, interface, ratio, peers=True)}")
    if threaded := [case for case in results.samples if case.startswith(("threads", "sleep"))]:
        parts.append(
            f"### Thread switches\n\nHow often the server's threads wait, per request:\n\n{switches_table(results, threaded)}"
        )
    return "\n".join(parts)


def switches_table(results: Results, cases: list[str]) -> str:
    """Return how often threads wait per request, by case and server."""
    servers = list(dict.fromkeys(server for case in cases for server in results.servers(case, "wsgi")))
    rows = [
        [results.titles[case], *(number(results.median_of("switches", case, server)) for server in servers)] for case in cases
    ]
    return table(["", *map(name, servers)], rows)


README_COLUMNS = {
    "wsgi": ["forkserve wsgi", "bjoern wsgi", "granian wsgi", "", "gunicorn gthread wsgi"],
    "asgi": ["forkserve asgi", "", "granian asgi", "uvicorn asgi", "gunicorn asgi"],
}
README_ROWS = {"WSGI": ("wsgi", "real"), "ASGI": ("asgi", "real"), "Flask": ("wsgi", "flask"), "FastAPI": ("asgi", "fastapi")}


def readme_table(results: Results) -> str:
    """Return what the README shows: the least value of each row is bold."""
    heads = ["", "forkserve", "bjoern (C)", "granian (Rust)", "uvicorn", "gunicorn (gthread, asgi)"]
    rows = []
    for text, (interface, case) in README_ROWS.items():
        servers = README_COLUMNS[interface]
        best = results.best(case, [server for server in servers if server])
        cells = [number(results.median(case, server)) for server in servers]
        rows.append(
            [text, *(f"**{cell}**" if cell and server == best else cell for server, cell in zip(servers, cells, strict=True))]
        )
    return table(heads, rows)


PLOTS = {
    "real": [("real", "wsgi"), ("real", "asgi")],
    "frameworks": [("flask", "wsgi"), ("django", "wsgi"), ("django", "asgi"), ("fastapi", "asgi")],
    "threads-and-websocket": [("threads", "wsgi"), ("sleep", "wsgi"), ("websocket", "asgi")],
}


def plot(results: Results, panels: list[tuple[str, str]]) -> str:
    """Return a picture of some cases, the least value of each first."""
    shown = []
    for case, interface in panels:
        rows = []
        for server in sorted(results.servers(case, interface), key=lambda one: results.median(case, one) or 0.0):
            if values := results.values(case, server):
                median = results.median(case, server) or 0.0
                rows.append(Bar(name(server), median, min(values), max(values), number(median), ours(server)))
        if rows:
            shown.append((f"{results.titles[case]} ({INTERFACES[interface]})", rows))
    return bars(shown, "CPU microseconds of the whole server per request: less is better")


def replaced(text: str, mark: str, part: str) -> str:
    """Return a page with what stands between `<!-- measured: MARK -->` and `<!-- /measured -->` replaced."""
    block = re.compile(rf"(<!-- measured: {re.escape(mark)} -->\n).*?(<!-- /measured -->)", re.DOTALL)
    fresh, count = block.subn(lambda found: f"{found[1]}{part}{found[2]}", text)
    if count != 1:
        raise ValueError(f"there is no place, or more than one, for {mark}")
    return fresh

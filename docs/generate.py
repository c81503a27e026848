"""Write what the pages repeat of the code: tables of settings, commands, signals, exit codes and hooks, and the drawing.

Run it as `python docs/generate.py`. It replaces what stands between `<!-- generated: NAME -->` and `<!-- /generated -->`
on every page and leaves the rest alone. A test fails while a page is stale. To add a table, write a function and name it in
`TABLES`.
"""  # noqa: INP001 - a script beside the pages

from __future__ import annotations

import ast
import inspect
import itertools
import re
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import incidents  # beside this script
from drawing import svg  # beside this script

import forkserve
from forkserve.cli import man
from forkserve.cli.commands import SUB_COMMANDS
from forkserve.cli.ctl_local import all_commands
from forkserve.config.load import HOOKS
from forkserve.config.peers import gunicorn, uvicorn
from forkserve.config.report import markdown_table
from forkserve.config.spec import flag
from forkserve.config.table import TABLE
from forkserve.ops import openmetrics
from forkserve.prefork.control.command import signals_of
from forkserve.prefork.ipc import adminmessages  # noqa: F401 - its messages are in the list, too
from forkserve.prefork.ipc.messages import MESSAGES
from forkserve.prefork.master.commands import MasterCommands
from forkserve.prefork.master.reactions import SignalReactions
from forkserve.prefork.master.upgrade.state import MasterState
from forkserve.prefork.policy.states import TRANSITIONS, Event
from forkserve.prefork.system.scoreboard import MASTERS
from forkserve.prefork.system.scoreboard import TABLE as SCOREBOARD
from forkserve.prefork.worker.signals import WORKER_SIGNALS as OF_WORKERS

if TYPE_CHECKING:
    from forkserve.config.peers.rules import Rule

PAGES = Path(__file__).parent
PACKAGE = Path(forkserve.__path__[0])
BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- /generated -->)", re.DOTALL)
INNER = ("config", "http", "prefork")
"""Packages that are drawn by their parts."""


def row(*cells: object) -> str:
    """Return one row of a table."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


# What the pages say of a signal, by the method that answers it. A signal of the code that is missing here is an error.
MASTER_SIGNALS = {
    "terminate": "Stop gracefully. A second one stops at once, unless it follows within a second: runners such as npm and honcho"
    " forward the signal that the terminal has sent to the whole process group.",
    "stop": "Stop gracefully.",
    "hangup": "Reload. If the terminal from which the server was started has been closed, stop gracefully.",
    "reopen_logs": "Reopen the log files, for log rotation.",
    "upgrade": "Upgrade in place: run the new program under the same pid, then reload.",
    "more": "Add one worker; but with `--debug`, suspend the server if a worker has read the terminal in the background.",
    "less": "Remove one worker. The last one stays; `forkserve ctl scale 0` removes it.",
    "resize": "Stop all workers and keep the listeners, so that connections wait. `TTIN` starts workers again.",
}
WORKER_SIGNALS = {
    "terminated": "Finish the requests in hand and exit; the master forks a replacement.",
    "interrupted": "The same; the hook `worker_int` runs first.",
    "reopen_logs": "Reopen the log files of this worker.",
    "suspend": "Suspend the process, as Ctrl-Z does.",
    "nothing": "No effect. A terminal or service manager sends these to the whole process group; they are for the master.",
}

HOOK_TIMES = {
    "on_starting": ("master", "before the first fork"),
    "on_reload": ("master", "when a reload begins"),
    "when_ready": ("master", "when all workers are ready, and after an upgrade"),
    "pre_fork": ("master", "before a worker is forked"),
    "post_fork": ("worker", "after the fork, before the app is loaded (with `--preload`: after it)"),
    "post_worker_init": ("worker", "when the app is loaded"),
    "worker_int": ("worker", "on SIGQUIT"),
    "worker_abort": (
        "worker",
        "when it is about to be killed, as its heartbeat has stopped; it has 1 s, and cannot run beside native code",
    ),
    "worker_exit": ("worker", "before the process exits"),
    "child_exit": ("master", "after a worker has ended"),
    "nworkers_changed": ("master", "when the number of wanted workers changes, and first of all, with `None` as `old_value`"),
    "pre_request": ("worker", "before the app is called"),
    "post_request": ("worker", "after the answer"),
    "pre_exec": ("master", "when an upgrade begins, before its pre-flight"),
    "on_exit": ("master", "when everything is closed"),
    "ssl_context": (
        "worker",
        "with `certfile`: returns the TLS context; the second argument is a function that makes the usual one",
    ),
}


def table(*heads: str, rows: Iterator[str]) -> str:
    """Return a table in Markdown."""
    return "\n".join([row(*heads), "|" + "---|" * len(heads), *rows])


def summary(documented: object) -> str:
    """Return the first sentence of a docstring."""
    text = " ".join((inspect.getdoc(documented) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.])\s", text)[0]


def commands() -> Iterator[tuple[str, str, str, float | None]]:
    """Return the commands of `forkserve ctl`: name, usage, help and the seconds that it waits. The only place that reads them."""
    for name, one in all_commands().items():
        yield name, one.usage, one.help, one.timeout


def settings_table() -> str:
    """The settings, under a heading for each group."""
    head, rule, *rows = markdown_table().splitlines()
    grouped = itertools.groupby(zip(TABLE.values(), rows, strict=True), key=lambda pair: pair[0].group)
    return "\n\n".join("\n".join([f"## {group}\n", head, rule, *(line for _, line in pairs)]) for group, pairs in grouped)


def ctl_table() -> str:
    """The commands of `forkserve ctl`."""
    rows = (
        row(f"`{f'{name} {usage}'.strip()}`", about, "no limit" if seconds is None else f"{seconds:g} s")
        for name, usage, about, seconds in commands()
    )
    return table("command", "meaning", "waits for at most", rows=rows)


def signals(handled: Mapping[int, str], meanings: Mapping[str, str]) -> str:
    """The signals that are answered in the same way, in one row each."""
    together: dict[str, list[str]] = defaultdict(list)
    for number, name in handled.items():
        together[name].append(f"`{signal.Signals(number).name.removeprefix('SIG')}`")
    return table("signal", "effect", rows=(row(", ".join(names), meanings[name]) for name, names in together.items()))


def exit_codes() -> str:
    """The exit codes, each with the error that ends in it."""
    rows = (row(f"`{code.value}`", f"`{code.name}`", about) for code, about in man.exit_codes().items())
    return table("code", "name", "meaning", rows=rows)


def sub_commands() -> str:
    """The sub-commands of the command line."""
    rows = (row(f"`forkserve {name} {one.usage}".rstrip() + "`", one.about) for name, one in SUB_COMMANDS.items())
    return table("command", "effect", rows=rows)


def hook_table() -> str:
    """The functions that a configuration file may define."""
    rows = (row(f"`{name}({', '.join(parameters)})`", *HOOK_TIMES[name]) for name, parameters in HOOKS.items())
    return table("function", "process", "called", rows=rows)


def peer_table(rules: Mapping[str, Rule], *, heading: str) -> str:
    """The settings of another server, and what becomes of each; those that have no effect for one reason in one row."""
    mapped = (row(f"`{name}`", _becomes(name, rule), rule.note) for name, rule in rules.items() if rule.to and rule.to != "hook")
    hooks = ", ".join(f"`{name}`" for name, rule in rules.items() if rule.to == "hook")
    other = [row(hooks, "called", "[Hooks](../reference/hooks.md)")] if hooks else []
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, rule in rules.items():
        if rule.ignored:
            reasons[rule.ignored].append(f"`{name}`")
    other += [row(", ".join(names), "ignored", why) for why, names in reasons.items()]
    other += [row(f"`{name}`", "refused", _refusal(rule)) for name, rule in rules.items() if not rule.to and not rule.ignored]
    return table(heading, "forkserve", "remarks", rows=itertools.chain(mapped, other))


def _becomes(name: str, rule: Rule) -> str:
    flags = ", ".join(f"`{'APP' if one == 'app' else flag(one)}`" for one in rule.to.split())
    return "the same" if rule.to == name else flags


def _refusal(rule: Rule) -> str:
    """The message for a value that is refused."""
    try:
        found = rule.read("/x") if rule.read else None
    except ValueError as error:
        return str(error)
    raise ValueError(f"{found!r} is not refused")


def packages() -> str:
    """The packages and which imports which, from the code, as SVG. Arrows that follow from others are left out."""
    imported: dict[str, set[str]] = defaultdict(set)
    order: TopologicalSorter[str] = TopologicalSorter()
    for one, other in sorted(_imports()):
        imported[one].add(other)
        order.add(one, other)
    names = list(order.static_order())
    reached: dict[str, set[str]] = {}  # by way of others
    for name in names:
        reached[name] = {far for near in imported[name] for far in imported[near] | reached[near]}
    return svg({name: imported[name] - reached[name] for name in names})


def states() -> str:
    """The states of a worker's process in a row each, with the state that follows on each event."""
    befores = dict.fromkeys(before for before, _ in TRANSITIONS)
    afters = ([TRANSITIONS.get((before, event)) for event in Event] for before in befores)
    cells = ([f"`{after.value}`" if after else "" for after in line] for line in afters)
    rows = (row(f"`{before.value}`", *line) for before, line in zip(befores, cells, strict=True))
    return table("state", *(event.value for event in Event), rows=rows)


def _imports() -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            for name in _named(node):
                one, other = _part(module), _part(name)
                if one and other and one != other:
                    found.add((one, other))
    return found


def _named(node: ast.AST) -> Iterator[str]:
    """Return the modules of ours that a statement may import."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "forkserve":
        for alias in node.names:
            yield f"{node.module}.{alias.name}".partition(".")[2]
    elif isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.startswith("forkserve."):
                yield alias.name.partition(".")[2]


def _part(module: str) -> str | None:
    """Return the box that a module is drawn in; None for the face of the package, which imports everything."""
    first, *others = module.split(".")
    if not (PACKAGE / first).is_dir():
        return first if first == "server" else None
    if first in INNER and others and (PACKAGE / first / others[0]).is_dir():
        return f"{first}.{others[0]}"
    return first


def meanings(documented: type) -> dict[str, str]:
    """What the docstring of a class says of its attributes, by name."""
    text = inspect.cleandoc(documented.__doc__ or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", text, re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in found}


def fields(documented: type) -> Iterator[tuple[str, str, str]]:
    """Return name, type and meaning of each field of a record. Raises KeyError for a field without a meaning."""
    known = meanings(documented)
    for name, kind in inspect.get_annotations(documented).items():
        yield name, kind, known[name]


def messages(*, to_master: bool) -> str:
    """The messages in one direction, in one row each."""
    rows = (
        row(
            f"**{one.__name__}**<br>{f'`{one.tag}`' if one.tag else 'no tag'}",
            one.sender if to_master else one.receiver,
            " ".join(inspect.cleandoc(one.__doc__ or "").partition("Attributes:")[0].split()),
            "<br>".join(f"`{name}: {kind}` {meaning}" for name, kind, meaning in fields(one)),
        )
        for one in MESSAGES
        if (one.receiver == "master") is to_master
    )
    return table("message", "from" if to_master else "to", "when", "fields", rows=rows)


def scoreboard() -> str:
    """The numbers in a row of the scoreboard."""
    rows = (row(one.index, one.count, f"`{one.name}`", one.kind, one.unit, one.meaning) for one in SCOREBOARD)
    return table("index", "count", "name", "kind", "unit", "meaning", rows=rows)


def scoreboard_of_the_master() -> str:
    """The numbers of the master in the scoreboard."""
    rows = (row(one.index, f"`{one.name}`", one.unit, one.meaning) for one in MASTERS)
    return table("index", "name", "unit", "meaning", rows=rows)


def metrics() -> str:
    """The series of /metrics."""
    rows = (
        row(f"`{one.shown}`", one.kind, ", ".join(f"`{label}`" for label in one.labels), one.meaning) for one in openmetrics.TABLE
    )
    return table("series", "type", "labels", "meaning", rows=rows)


def handed_over() -> str:
    """The parts of the state that an upgrade hands over."""
    rows = (row(f"`{name}`", f"`{kind}`", meaning) for name, kind, meaning in fields(MasterState))
    return table("part", "type", "meaning", rows=rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "messages-to-master": lambda: messages(to_master=True),
    "messages-from-master": lambda: messages(to_master=False),
    "scoreboard": scoreboard,
    "scoreboard-of-the-master": scoreboard_of_the_master,
    "metrics": metrics,
    "handed-over": handed_over,
    "settings": settings_table,
    "ctl": ctl_table,
    "master-signals": lambda: signals({**signals_of(MasterCommands), **signals_of(SignalReactions)}, MASTER_SIGNALS),
    "worker-signals": lambda: signals(OF_WORKERS, WORKER_SIGNALS),
    "exit-codes": exit_codes,
    "commands": sub_commands,
    "hooks": hook_table,
    "gunicorn-settings": lambda: peer_table(gunicorn.SETTINGS, heading="gunicorn"),
    "uvicorn-options": lambda: peer_table(uvicorn.OPTIONS, heading="uvicorn"),
    "states": states,
    "incidents": lambda: incidents.page(PACKAGE),
}


DRAWINGS: Mapping[str, Callable[[], str]] = {"internals/packages.svg": packages, "man/forkserve.1": man.page}
"""Files that are generated whole, below `PAGES`."""


def fresh(text: str) -> str:
    """Return a page with its generated parts as they are now."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", text)


def main() -> None:
    """Bring all pages up to date."""
    for path in sorted(PAGES.rglob("*.md")):
        text = path.read_text()
        if (made := fresh(text)) != text:
            path.write_text(made)
    for name, draw in DRAWINGS.items():
        (PAGES / name).write_text(draw())


if __name__ == "__main__":
    main()

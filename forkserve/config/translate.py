"""Translate: what other servers' settings mean here, by the rules of `forkserve.config.peers`. Pure.

A key that a source gives is a `Given`. One that only another server has becomes one of ours, or a part of the line that the log
shows at the start, or a ValueError that says what to write instead.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from forkserve.config import values
from forkserve.config.peers import gunicorn, uvicorn
from forkserve.config.peers.rules import Rule, Table
from forkserve.config.table import NAMES, TABLE

PEERS: Mapping[str, Table] = {"gunicorn": gunicorn.SETTINGS, "uvicorn": uvicorn.OPTIONS}
LATER = ("worker_class", "worker_connections")  # they are judged together with --threads, from whatever source
MOST_THREADS = 64  # in place of greenlets, of which there may be thousands
USUAL_CONNECTIONS = 1000  # of gunicorn

# Settings that an empty text does not leave at their defaults: it means no peer, every interface, or a mistake.
EMPTY_COUNTS = frozenset((*(name for name, spec in TABLE.items() if spec.kind is values.peers), "host", "user", "group"))

# Worker classes by name, as gunicorn's users have them. The first pattern that matches decides.
CLASSES = (
    ("(?i)aiohttp", ""),
    ("(?i).*(uvicorn|asgi|sanic|quart)", "asgi"),
    ("(?i).*(gevent|eventlet|tornado|meinheld)", "greenlets"),
    (r"(?i)(egg:gunicorn#)?sync$|gunicorn\..*SyncWorker$", "inline"),
    (r"(?i)(egg:gunicorn#)?gthread$|gunicorn\..*ThreadWorker$", "threads"),
)


@dataclass(frozen=True, slots=True)
class Given:
    """One key that a source gives.

    Attributes:
        key: The name of the setting, as the source has it.
        value: Its value.
        label: Its name in messages.
        origin: Its origin in `forkserve config`.
        peer: The server that the source was written for; empty: forkserve.
        rank: The place of the source in the order, the weakest first.
    """

    key: str
    value: object
    label: str
    origin: str
    peer: str = ""
    rank: int = 0


@dataclass(slots=True)
class Said:
    """What the log says of the configuration at the start.

    Attributes:
        read: Files and variables of other servers that count.
        mapped: The settings that mean something of another name here.
        ignored: The settings without effect, each with the reason.
        others: Further lines.
        warnings: Lines that may matter to users of the app.
        foreign: What was given for settings that only gunicorn has, by name. The log does not show it.
    """

    read: list[str] = field(default_factory=list)
    mapped: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    foreign: dict[str, object] = field(default_factory=dict)

    def lines(self) -> tuple[str, ...]:
        """Return the lines of severity INFO."""
        parts = (("read", self.read), ("mapped", self.mapped), ("ignored", self.ignored))
        line = "; ".join(f"{word} {', '.join(dict.fromkeys(found))}" for word, found in parts if found)
        return (*([f"configuration: {line}"] if line else []), *self.others)


def rule_of(one: Given) -> Rule | None:
    """Return the rule for a key; None if it is one of ours, or unknown."""
    if one.peer:
        return PEERS[one.peer].get(one.key)
    if one.key in NAMES:
        return None
    return next((table[one.key] for table in PEERS.values() if one.key in table), None)


def translated(one: Given, said: Said) -> Given | None:
    """Return what a key means here; None if it means nothing.

    Raises ValueError, with what to write instead.
    """
    if one.peer == "gunicorn" and isinstance(one.value, str):
        if is_unset(one.key, one.value):
            return None  # as os.getenv("NAME", "") gives it
        one = replace(one, value=one.value.strip())  # as gunicorn does
    rule = rule_of(one)
    if rule is None or rule.renames:
        return one
    if one.key in gunicorn.SETTINGS and one.key not in NAMES:
        said.foreign[one.key] = one.value
    if one.key in LATER:
        return one
    value = rule.read(one.value) if rule.read else one.value
    if rule.to:
        if value is None:
            return None
        if NAMES.get(one.key) != rule.to:
            said.mapped.append(f"{one.label} to {rule.to}")
        return replace(one, key=rule.to, value=value)
    if rule.ignored and one.value and one.value not in rule.usual and not (rule.switch and _is_off(one.value)):
        if rule.warns:
            said.warnings.append(f"{one.label} is ignored: {rule.ignored}")
        else:
            said.ignored.append(f"{one.label} ({rule.ignored})")
    return None


def is_unset(key: str, value: object) -> bool:
    """Whether a value is an empty text, as of a variable that is not set, which leaves the setting at its default."""
    return isinstance(value, str) and not value.strip() and NAMES.get(key) not in EMPTY_COUNTS


def settle_workers(final: dict[str, Any], given: Mapping[str, Given], origins: dict[str, str], said: Said) -> None:
    """Set threads, interface and worker as gunicorn's worker class means. Raises ValueError for one that has no equal."""
    named, threads, connections = (given.get(name) for name in ("worker_class", "threads", "worker_connections"))
    kind = kind_of(named.value) if named else "inline" if threads and threads.peer == "gunicorn" else ""
    if connections and kind != "greenlets":
        said.ignored.append(f"{connections.label} (only gevent has a use for it)")
    if kind == "inline" and final["threads"] == 1:
        final["threads"] = 0
    if named is None:
        return
    name = _name_of(named.value)
    changes: dict[str, object] = {}
    if kind == "threads":
        changes["threads"] = max(1, final["threads"])
    elif kind == "greenlets" and not (threads and threads.rank > named.rank):
        most = connections.value if connections else USUAL_CONNECTIONS
        changes["threads"] = min(MOST_THREADS, values.number(most, "a number of connections", low=1, high=2**31 - 1))
        said.warnings.append(
            f"{named.label}: {name} is not available; a WSGI app runs in {changes['threads']} threads per worker (--threads)"
        )
    elif kind == "asgi" and final["interface"] == "auto":
        changes["interface"] = "asgi"
    elif kind == "own" and final["worker"] is None:
        changes["worker"] = name if ":" in name else ":".join(name.rsplit(".", 1))
    if kind != "greenlets":
        means = " ".join(f"{one} = {value}" for one, value in changes.items()) or f"threads = {final['threads']}"
        said.mapped.append(f"{named.label} ({name}) to {means}")
    origins.update({one: named.origin for one, value in changes.items() if value != final[one]})
    final.update(changes)


def kind_of(value: object) -> str:
    """Return what a worker class becomes: inline, threads, asgi, greenlets or own. Raises ValueError for others."""
    names = [_name_of(one) for one in value.__mro__] if inspect.isclass(value) else [_name_of(value)]
    for pattern, kind in CLASSES:
        if any(re.match(pattern, one) for one in names):
            if not kind:
                raise ValueError("an app of aiohttp is neither WSGI nor ASGI, and cannot be served")
            return kind
    if names[0].startswith("__config__") or not re.fullmatch(r"[^\W\d]\w*([.:][^\W\d]\w*)+", names[0]):
        raise ValueError(
            f"{values.shown(value)} is no worker class: WSGI or ASGI is detected, and --threads N runs a WSGI app in threads;"
            " leave it out"
        )
    return "own"


def _is_off(value: object) -> bool:
    return isinstance(value, str) and value.lower() in ("false", "no", "off", "0")


def _name_of(value: object) -> str:
    return f"{value.__module__}.{value.__qualname__}" if inspect.isclass(value) else str(value)

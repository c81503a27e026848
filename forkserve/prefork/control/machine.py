"""Every server on this machine whose control socket we may use. Not for a master: it waits for the servers' answers."""

from __future__ import annotations

import pwd
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from forkserve.base.errors import CommandError
from forkserve.prefork.control import runtime_dir
from forkserve.prefork.control.client import ask

PATIENCE: Final = 2.0  # seconds for a server to answer
LONGEST: Final = 16 << 20  # bytes of a status
_AT_ONCE: Final = 16


def servers(environ: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a row for each server: name, user, state, workers and addresses, pid and socket.

    The state is that of the server's status; `dead`: its socket is there, but nobody listens, as it was killed; `no answer`: it
    did not answer in PATIENCE seconds, or not as a server of ours does (`error`).
    """
    found = list(runtime_dir.sockets(environ))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        rows = list(pool.map(lambda one: _describe(*one), found))
    return sorted(rows, key=lambda row: (row["state"] == "dead", row["name"], row["socket"]))


def _describe(name: str, path: str, user: int) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "user": _user(user), "state": "dead", "ready": None, "wanted": None, "addresses": []}
    row |= {"pid": None, "socket": path, "error": None}
    if not runtime_dir.is_served_by(path, user):
        return row
    try:
        answer = ask(path, "status", timeout=PATIENCE, longest=LONGEST)
        if answer["error"] is not None:
            return row | {"state": "no answer", "error": str(answer["error"].get("message"))}
        status = answer["result"]
        ready = status.get("ready", sum(one["state"] == "ready" for one in status["workers"]))
        addresses = [one["address"] for one in status["listeners"]]
        row |= {key: status[key] for key in ("name", "state", "wanted", "pid")} | {"ready": ready, "addresses": addresses}
    except CommandError as error:
        row |= {"state": "no answer", "error": str(error)}
    except (AttributeError, KeyError, TypeError) as error:
        row |= {"state": "no answer", "error": f"its status cannot be read: {error!r}"}
    return row


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)

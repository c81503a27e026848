"""The operations that a server gets at random under load.

Each operation is a function in OPERATIONS, with its weight and the servers that it applies to. It acts and returns at
once; later actions are scheduled with `Stage.later`, and answers of the control socket are checked when they arrive.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.integration.configurations import LINGER, Configuration
from tests.integration.stage import WORKER_STATES, Stage

SIGNALS_WITHOUT_EFFECT = (signal.SIGHUP, signal.SIGINT, signal.SIGWINCH, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1)
REPLIES = {"ok", "died", "timeout", "error"}


def _pick(stage: Stage, *states: str) -> dict[str, Any] | None:
    rows = [row for row in stage.sampled() if row["pid"] and row["state"] in (states or WORKER_STATES)]
    return stage.chance.choice(rows) if rows else None


def reload_good(stage: Stage) -> None:
    """Save new code and reload; the code is good unless another operation has just broken it."""
    if not stage.broken:
        stage.improve()
    stage.ask("reload", judge=lambda found: "" if isinstance(found["generation"], int) else "no generation")


def reload_broken(stage: Stage) -> None:
    """Break the code or the configuration, reload, and repair it before or after it is read."""
    stage.spoil()
    stage.ask("reload")
    stage.later(stage.chance.uniform(0, 1.2), stage.repair)


def hang_up(stage: Stage) -> None:
    """Reload by signal."""
    stage.signal(signal.SIGHUP)
    stage.disturb()


def kill_worker(stage: Stage) -> None:
    """Kill a worker in any state."""
    if row := _pick(stage):
        stage.kill(row["pid"])


def end_worker(stage: Stage) -> None:
    """Send TERM or QUIT to a worker, as an administrator might."""
    if row := _pick(stage):
        stage.disturb()
        stage.ended_at = time.monotonic()
        stage.signal(stage.chance.choice([signal.SIGTERM, signal.SIGQUIT]), row["pid"])


def stop_worker(stage: Stage) -> None:
    """Suspend a worker, and resume it a little later."""
    if row := _pick(stage):
        pid = row["pid"]
        stage.disturb()
        stage.stopped.add(pid)
        stage.signal(signal.SIGSTOP, pid)
        stage.later(stage.chance.uniform(0.02, 0.7 * LINGER), lambda: stage.resume(pid))


def signal_worker(stage: Stage) -> None:
    """Send a signal without effect to a worker."""
    if row := _pick(stage, "ready", "draining"):
        stage.signal(stage.chance.choice(SIGNALS_WITHOUT_EFFECT), row["pid"])


def stacks_by_signal(stage: Stage) -> None:
    """Send USR2 to a worker: the master may log its stacks."""
    if row := _pick(stage, "ready", "draining"):
        stage.signal(signal.SIGUSR2, row["pid"])


def kill_mold(stage: Stage) -> None:
    """Kill a mold."""
    molds = [row["pid"] for row in stage.status()["molds"] if row["pid"]]
    if molds:
        stage.note("of a mold:")
        stage.kill(stage.chance.choice(molds))


def scale(stage: Stage) -> None:
    """Set another number of workers."""
    number = stage.chance.randint(stage.configuration.least, stage.configuration.most)
    stage.expect_workers(number)
    stage.ask("scale", number, judge=lambda found: "" if found == {"workers": number} else f"not {number}")


def one_more(stage: Stage) -> None:
    """Add a worker with TTIN."""
    if stage.status()["wanted"] in range(1, stage.configuration.most):
        stage.expect_workers(stage.configuration.most)
        stage.signal(signal.SIGTTIN)
        stage.disturb()


def one_less(stage: Stage) -> None:
    """Remove a worker with TTOU."""
    if stage.status()["wanted"] > stage.configuration.least and not stage.pending:
        stage.expect_workers(stage.configuration.least)
        stage.signal(signal.SIGTTOU)
        stage.disturb()


def none_for_a_while(stage: Stage) -> None:
    """Stop all workers with WINCH. Connections wait."""
    most = stage.configuration.most

    def back() -> None:
        stage.expect_workers(most)
        stage.ask("scale", most)

    stage.expect_workers(most)
    stage.signal(signal.SIGWINCH)
    stage.disturb()
    stage.later(stage.chance.uniform(0.0, 1.0), back)


def restart_worker(stage: Stage) -> None:
    """Restart one worker."""
    if row := _pick(stage):
        stage.ask("restart", row["id"])


def reopen_logs(stage: Stage) -> None:
    """Rename the access log, and let the server open a new one."""
    path = stage.directory / "access"
    with contextlib.suppress(FileNotFoundError):
        path.replace(stage.directory / "access.1")
    if stage.chance.random() < 0.3:
        stage.signal(signal.SIGUSR1)
    else:
        stage.ask("reopen-logs", judge=_replies)


def stacks(stage: Stage) -> None:
    """Request the stacks of all workers."""
    stage.ask("stacks", judge=lambda found: "" if isinstance(found, list) else "no list")


def call(stage: Stage) -> None:
    """Run a command in all workers, or in any one."""
    stage.ask("call", "version", to=stage.chance.choice(["all", "all", "any"]), judge=_replies)


def _replies(found: Any) -> str:
    return next((f"a reply is {one['status']}" for one in found if one["status"] not in REPLIES), "")


def upgrade(stage: Stage) -> None:
    """Upgrade to the same program, by command or signal."""
    if not stage.broken:
        stage.improve()
    if stage.chance.random() < 0.3 and not stage.pending and not stage.upgrading:
        stage.upgrade_by_signal()
    else:
        stage.ask("upgrade")


def upgrade_broken(stage: Stage) -> None:
    """Upgrade while files are broken and repaired."""
    begin, end = sorted((stage.chance.uniform(0.0, 1.5), stage.chance.uniform(0.0, 2.0)))
    stage.later(begin, stage.spoil)
    stage.later(end, stage.repair)
    stage.ask("upgrade")
    stage.disturb()


def kill_master(stage: Stage) -> None:
    """Kill the master, and start another one."""
    stage.restart(signal.SIGKILL)


def stop_master(stage: Stage) -> None:
    """Stop the master, and start another one. Accepted connections are served."""
    stage.restart(signal.SIGTERM)


@dataclass(frozen=True)
class Operation:
    """An operation, and how often it is chosen."""

    do: Callable[[Stage], None]
    weight: int
    fits: Callable[[Configuration], bool] = lambda _: True


OPERATIONS = (
    Operation(reload_good, 5),
    Operation(reload_broken, 3),
    Operation(hang_up, 1),
    Operation(kill_worker, 5),
    Operation(end_worker, 3),
    Operation(stop_worker, 3),
    Operation(signal_worker, 2),
    Operation(stacks_by_signal, 1),
    Operation(kill_mold, 4, lambda one: one.preload),
    Operation(scale, 4),
    Operation(one_more, 1),
    Operation(one_less, 1),
    Operation(none_for_a_while, 1),
    Operation(restart_worker, 3),
    Operation(reopen_logs, 2),
    Operation(stacks, 2),
    Operation(call, 3),
    Operation(upgrade, 2),
    Operation(upgrade_broken, 2),
    Operation(kill_master, 1),
    Operation(stop_master, 1),
)

"""Commands from mixins and from the master; many workers, time limits and exits at the same time."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.integration.command import eventually, exists
from tests.integration.commands.test_worker_commands import APPS, ASGI, EVERY_KIND, INLINE, Kind, probe
from tests.integration.conftest import Start
from tests.integration.steer import Steered
from tests.integration.steered import Remote


def test_mixins_override_in_their_order(start: Start, tmp_path: Path) -> None:
    """`--mixin` is repeatable; super() leads from each mixin to the next."""
    server = Steered(start, tmp_path, *INLINE, "--base-port", 0, "--mixin", f"{APPS}:Louder", "--mixin", f"{APPS}:Probe")

    assert server.call("note", "x")[0]["value"] == [1, "X", 0, True]
    names = {one["name"]: one["usage"] for one in server.ask("commands")["result"]["own"]}
    assert names["note"] == "TEXT"
    assert names["hold"] == "PATH"


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("mixin", "complaint"),
    [
        ("BadName", "'Flush' is no name for a command"),
        ("Hook", "a command cannot be called 'start': on_start is a hook"),
        ("no_class", "this is not a class"),
        ("Nothing", "has no attribute 'Nothing'"),
    ],
)
@pytest.mark.parametrize("kind", [INLINE, ASGI], ids=["inline", "asgi"])
def test_a_bad_mixin_is_an_error_at_the_start(start: Start, kind: Kind, mixin: str, complaint: str) -> None:
    command = start(*kind, "--base-port", 0, "--workers", 2, "--mixin", f"{APPS}:{mixin}")
    output = command.wait(2)

    (line,) = [one for one in output.splitlines() if one.startswith("forkserve: ")]
    assert complaint in line
    assert output.count("\n") == 1, output


def test_an_exception_in_a_hook_of_the_master_refuses_the_command(start: Start, tmp_path: Path) -> None:
    """The hook is defined in a subclass of Server; its exception is the answer, and no worker runs the command."""
    remote = Remote(
        start, tmp_path, "forkserve:HTTPWorker", app=ASGI[0], base_port=0, mixin=[f"{APPS}:Probe"],
        env={"NOTES": str(tmp_path / "notes")},
    )  # fmt: skip

    assert remote.ask("call", "forbidden", 1)["error"] == {"code": "refused", "message": "forbidden was refused: not by you"}
    assert remote.call("note", "x")[0]["value"] == [1, "x", 0, True]


# Under load.


@pytest.mark.heavy
def test_one_call_runs_in_64_workers_in_parallel(start: Start, tmp_path: Path) -> None:
    """The call takes about as long as one command, and all replies share one deadline."""
    remote = Remote(start, tmp_path, "Idle", workers=64)
    replies = remote.call("nap", 0.5, timeout=30)

    assert [reply["value"] for reply in replies] == list(range(1, 65))
    assert max(reply["seconds"] for reply in replies) < 16
    assert [reply["status"] for reply in remote.call("nap", 5, timeout=0.05)] == ["timeout"] * 64


@EVERY_KIND
def test_a_huge_or_missing_timeout_is_accepted(start: Start, tmp_path: Path, kind: Kind) -> None:
    server = probe(start, tmp_path, kind, workers=1)

    assert server.call("note", "x", timeout=999_999)[0]["status"] == "ok"
    assert server.call("note", "x", timeout=None)[0]["status"] == "ok"
    held = server.begin("call", "hold", str(tmp_path / "gate"), timeout=999_999)
    eventually(lambda: "holds 1" in server.noted(), "the command runs")
    (tmp_path / "gate").touch()
    assert held.answer["ok"]


def test_each_call_gets_one_reply_per_worker_while_a_worker_is_terminated(start: Start, tmp_path: Path) -> None:
    """A TERM sent to a worker leads to "ok" or "died", whatever the worker is doing."""
    server = probe(start, tmp_path, ASGI)
    for _ in range(5):
        victim = server.command.workers[0]
        calls = [server.begin("call", "count", number) for number in range(20)]
        os.kill(victim, signal.SIGTERM)
        calls += [server.begin("call", "count", number) for number in range(20)]
        for one in calls:
            assert {reply["status"] for reply in one.answer["result"]} <= {"ok", "died"}
        eventually(lambda victim=victim: not exists(victim), "the worker has exited")
        eventually(lambda: len(server.call("counted")) == 2, "two workers again")
    assert not re.search("fault in the master", server.command.stderr)

"""Where commands come from: mixins and the master; and many workers, limits and ends at once. Ids are those of the ancestors' features."""

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


def test_mixins_stand_in_front_in_their_order(start: Start, tmp_path: Path) -> None:
    """Repeatable; super() leads from each to the next."""
    server = Steered(start, tmp_path, *INLINE, "--base-port", 0, "--mixin", f"{APPS}:Louder", "--mixin", f"{APPS}:Probe")

    assert server.call("note", "x")[0]["value"] == [1, "X", 0, True]
    names = {one["name"]: one["usage"] for one in server.ask("commands")["result"]["own"]}
    assert names["note"] == "TEXT"
    assert names["hold"] == "PATH"


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
    said = command.wait(2)

    (line,) = [one for one in said.splitlines() if one.startswith("forkserve: ")]
    assert complaint in line
    assert said.count("\n") == 1, said


def test_the_masters_own_hook_refuses(start: Start, tmp_path: Path) -> None:
    """A subclass of Server: what it raises is the answer, and nobody is asked."""
    remote = Remote(
        start, tmp_path, "forkserve:HTTPWorker", app=ASGI[0], base_port=0, mixin=[f"{APPS}:Probe"],
        env={"NOTES": str(tmp_path / "notes")},
    )  # fmt: skip

    assert remote.ask("call", "forbidden", 1)["error"] == {"code": "refused", "message": "forbidden was refused: not by you"}
    assert remote.call("note", "x")[0]["value"] == [1, "x", 0, True]


# Together with others.


@pytest.mark.heavy
def test_64_workers_in_one_round(start: Start, tmp_path: Path) -> None:
    """In parallel, under one deadline: it takes as long as one of them."""
    remote = Remote(start, tmp_path, "Idle", workers=64)
    replies = remote.call("nap", 0.5, timeout=30)

    assert [reply["value"] for reply in replies] == list(range(1, 65))
    assert max(reply["seconds"] for reply in replies) < 16
    assert [reply["status"] for reply in remote.call("nap", 5, timeout=0.05)] == ["timeout"] * 64


@EVERY_KIND
def test_a_limit_that_no_system_call_takes(start: Start, tmp_path: Path, kind: Kind) -> None:
    server = probe(start, tmp_path, kind, workers=1)

    assert server.call("note", "x", timeout=999_999)[0]["status"] == "ok"
    assert server.call("note", "x", timeout=None)[0]["status"] == "ok"
    held = server.begin("call", "hold", str(tmp_path / "gate"), timeout=999_999)
    eventually(lambda: "holds 1" in server.noted(), "it has begun")
    (tmp_path / "gate").touch()
    assert held.answer["ok"]


def test_a_term_from_outside_while_commands_come(start: Start, tmp_path: Path) -> None:
    """Whatever a worker is when it gets one, there is one reply of each that was asked."""
    server = probe(start, tmp_path, ASGI)
    for _ in range(5):
        victim = server.command.workers[0]
        asked = [server.begin("call", "count", number) for number in range(20)]
        os.kill(victim, signal.SIGTERM)
        asked += [server.begin("call", "count", number) for number in range(20)]
        for one in asked:
            assert {reply["status"] for reply in one.answer["result"]} <= {"ok", "died"}
        eventually(lambda victim=victim: not exists(victim), "it has ended")
        eventually(lambda: len(server.call("counted")) == 2, "two again")
    assert not re.search("fault in the master", server.command.stderr)

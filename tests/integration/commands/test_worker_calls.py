"""Workers that call other workers: from an app, from a command, from a thread."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.client import Client, get
from tests.integration.command import eventually
from tests.integration.commands.test_worker_commands import ASGI, EVERY_KIND, INLINE, INLINE_KINDS, THREADS, Kind, probe
from tests.integration.conftest import Start
from tests.integration.steer import Steered

WAITING = pytest.mark.parametrize("kind", [ASGI, (*ASGI, "--loop", "asyncio"), THREADS], ids=["asgi", "asgi-asyncio", "threads"])


@WAITING
def test_an_app_calls_the_other_workers(start: Start, tmp_path: Path, kind: Kind) -> None:
    """An ASGI app awaits the replies, a pool thread waits for them; a worker never calls itself."""
    server = probe(start, tmp_path, kind, workers=3)
    for number, port in enumerate(server.command.ports, 1):
        assert get(port, "/ask").json == [[other, "ok"] for other in (1, 2, 3) if other != number]

    assert [line for line in server.noted() if line.startswith("child")].count("child called 1") == 2


@WAITING
def test_an_app_calls_any_worker_or_one_worker(start: Start, tmp_path: Path, kind: Kind) -> None:
    server = probe(start, tmp_path, kind)
    port = server.command.port

    for _ in range(5):
        assert get(port, "/ask?to=any").json == [[2, "ok"]]
    assert get(port, "/ask?to=2").json == [[2, "ok"]]
    assert get(port, "/ask?to=1").text == "CommandError: worker 1 cannot be called: it is not ready, or it is the caller itself"
    assert get(port, "/ask?to=7").text == "CommandError: there is no worker 7"


@WAITING
def test_a_call_without_other_workers_has_no_replies(start: Start, tmp_path: Path, kind: Kind) -> None:
    server = probe(start, tmp_path, kind, workers=1)

    assert get(server.command.port, "/ask").json == []
    assert get(server.command.port, "/ask?to=any&timeout=0.1").json == [[0, "timeout"]]


@WAITING
def test_a_call_to_a_busy_worker_times_out(start: Start, tmp_path: Path, kind: Kind) -> None:
    gate = tmp_path / "gate"
    server = probe(start, tmp_path, kind)
    held = server.begin("call", "hold", str(gate), to=2)
    eventually(lambda: server.noted() == ["holds 2"], "the command runs")

    assert get(server.command.port, "/ask?timeout=0.1").json == [[2, "timeout"]]
    gate.touch()
    assert held.answer["ok"]


@INLINE_KINDS
def test_an_inline_app_can_call_but_not_wait(start: Start, tmp_path: Path, kind: Kind) -> None:
    """Waiting would block this worker, while other workers may wait for it."""
    server = probe(start, tmp_path, kind)

    assert get(server.command.port, "/ask").text.startswith("WouldDeadlock: this thread also runs the commands of others")
    eventually(lambda: "child called 2" in server.noted(), "the call was sent although the wait was refused")
    assert get(server.command.port, "/tell").text == "1"
    eventually(lambda: "replied [2]" in server.noted(), "the callback")


def test_asgi_can_await_but_not_block(start: Start, tmp_path: Path) -> None:
    server = probe(start, tmp_path, ASGI)

    assert get(server.command.port, "/block").text.startswith("WouldDeadlock: ")
    assert get(server.command.port, "/thread").json == [2]


def test_an_abandoned_call_does_not_affect_later_calls(start: Start, tmp_path: Path) -> None:
    """An app stops awaiting when its client disconnects; the replies still arrive and are dropped."""
    gate = tmp_path / "gate"
    server = probe(start, tmp_path, ASGI)
    for _ in range(3):
        assert get(server.command.port, f"/leave?{gate}").text == "left"
    gate.touch()

    assert get(server.command.port, "/ask").json == [[2, "ok"]]
    assert [reply["status"] for reply in server.call("note", "x")] == ["ok", "ok"]
    assert not server.command.log, server.command.stderr


@EVERY_KIND
def test_a_command_calls_the_other_workers(start: Start, tmp_path: Path, kind: Kind) -> None:
    """An async command can await the replies, except in an inline worker, where nothing else runs while the command runs."""
    server = probe(start, tmp_path, kind)
    (reply,) = server.call("ask_others", to=1, timeout=10)

    assert reply["status"] == "ok"
    if kind[: len(INLINE)] == INLINE and "--threads" not in kind:
        assert reply["value"] == "this worker does nothing else while the command runs: use then()"
    else:
        assert reply["value"] == [2]


def test_an_invalid_call_kills_no_worker(start: Start, tmp_path: Path) -> None:
    """A name that is not text, a timeout that is not a number, and other invalid arguments."""
    server = probe(start, tmp_path, ASGI)
    before = server.command.workers

    for which in range(5):
        server.call("ask_nonsense", which, to=1)
        assert len(server.call("note", "x")) == 2
        assert server.command.workers == before


def test_the_master_survives_a_caller_that_dies(start: Start, tmp_path: Path) -> None:
    """The reply has no receiver any more."""
    gate = tmp_path / "gate"
    server = probe(start, tmp_path, ASGI)
    with Client(server.command.port) as client:
        held = server.begin("call", "hold", str(gate), to=2)
        eventually(lambda: server.noted() == ["holds 2"], "the command runs")
        client.request("/ask")
        eventually(lambda: "came /ask" in server.noted(), "the request has arrived")
        assert server.call("die", to=1)[0]["status"] == "died"
    gate.touch()
    assert held.answer["ok"]

    eventually(lambda: [reply["id"] for reply in server.call("note", "x")] == [1, 2], "two workers again")
    assert "fault in the master" not in server.command.stderr


def test_current_worker_raises_outside_of_a_worker(start: Start, tmp_path: Path) -> None:
    """There is no `current_worker` in this process."""
    from forkserve import current_worker

    with pytest.raises(RuntimeError, match="this process is no worker of forkserve"):
        current_worker()


def test_replies_that_are_too_large_together_are_an_error(start: Start, tmp_path: Path) -> None:
    """Each reply fits into a message, but not all together."""
    server = Steered(
        start, tmp_path, *ASGI, "-w", 3, "--base-port", 0, "--mixin", "tests.integration.commands.test_worker_calls:Much"
    )

    assert server.call("ask_much", to=1)[0]["value"].startswith(
        "CommandError: all replies together cannot be sent: message of 14"
    )


class Much:
    """A mixin whose command returns a large value."""

    def child_much(self) -> str:
        return "x" * 700_000

    async def child_ask_much(self) -> str:
        try:
            await self.call("much", timeout=10)
        except Exception as error:  # noqa: BLE001
            return f"{type(error).__name__}: {error}"
        return "it fits"

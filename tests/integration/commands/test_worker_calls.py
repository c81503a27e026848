"""Workers that ask the others: from an app, from a command, from a thread. Ids are those of the ancestors' features."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.client import Client, get
from tests.integration.command import eventually
from tests.integration.commands.test_worker_commands import ASGI, BETWEEN, EVERY_KIND, INLINE, THREADS, Kind, probe
from tests.integration.conftest import Start
from tests.integration.steer import Steered

WAITING = pytest.mark.parametrize("kind", [ASGI, (*ASGI, "--loop", "asyncio"), THREADS], ids=["asgi", "asgi-asyncio", "threads"])


@WAITING
def test_an_app_asks_the_others(start: Start, tmp_path: Path, kind: Kind) -> None:
    """Awaited in ASGI, waited for in a pool thread; it is never asked itself."""
    server = probe(start, tmp_path, kind, workers=3)
    for number, port in enumerate(server.command.ports, 1):
        assert get(port, "/ask").json == [[other, "ok"] for other in (1, 2, 3) if other != number]

    assert [line for line in server.noted() if line.startswith("child")].count("child asked 1") == 2


@WAITING
def test_an_app_asks_any_or_one(start: Start, tmp_path: Path, kind: Kind) -> None:
    server = probe(start, tmp_path, kind)
    port = server.command.port

    for _ in range(5):
        assert get(port, "/ask?to=any").json == [[2, "ok"]]
    assert get(port, "/ask?to=2").json == [[2, "ok"]]
    assert get(port, "/ask?to=1").text == "CommandError: worker 1 cannot be asked: it is not ready, or it is the one that asks"
    assert get(port, "/ask?to=7").text == "CommandError: there is no worker 7"


@WAITING
def test_an_app_that_has_nobody_to_ask(start: Start, tmp_path: Path, kind: Kind) -> None:
    server = probe(start, tmp_path, kind, workers=1)

    assert get(server.command.port, "/ask").json == []
    assert get(server.command.port, "/ask?to=any&timeout=0.1").json == [[0, "timeout"]]


@WAITING
def test_an_app_that_asks_who_is_busy(start: Start, tmp_path: Path, kind: Kind) -> None:
    gate = tmp_path / "gate"
    server = probe(start, tmp_path, kind)
    held = server.begin("call", "hold", str(gate), to=2)
    eventually(lambda: server.noted() == ["holds 2"], "it has begun")

    assert get(server.command.port, "/ask?timeout=0.1").json == [[2, "timeout"]]
    gate.touch()
    assert held.answer["ok"]


@BETWEEN
def test_an_inline_app_can_ask_but_not_wait(start: Start, tmp_path: Path, kind: Kind) -> None:
    """It would keep this worker from answering, and others may be waiting for it."""
    server = probe(start, tmp_path, kind)

    assert get(server.command.port, "/ask").text.startswith("WouldDeadlock: this thread also runs the commands of others")
    eventually(lambda: "child asked 2" in server.noted(), "it was sent all the same")
    assert get(server.command.port, "/tell").text == "1"
    eventually(lambda: "told [2]" in server.noted(), "the callback")


def test_asgi_can_await_but_not_wait(start: Start, tmp_path: Path) -> None:
    server = probe(start, tmp_path, ASGI)

    assert get(server.command.port, "/block").text.startswith("WouldDeadlock: ")
    assert get(server.command.port, "/thread").json == [2]


def test_who_stops_awaiting_harms_nobody(start: Start, tmp_path: Path) -> None:
    """As when its client has gone: the replies come all the same, and so does what comes with them."""
    gate = tmp_path / "gate"
    server = probe(start, tmp_path, ASGI)
    for _ in range(3):
        assert get(server.command.port, f"/leave?{gate}").text == "left"
    gate.touch()

    assert get(server.command.port, "/ask").json == [[2, "ok"]]
    assert [reply["status"] for reply in server.call("note", "x")] == ["ok", "ok"]
    assert not server.command.log, server.command.stderr


@EVERY_KIND
def test_a_command_asks_the_others(start: Start, tmp_path: Path, kind: Kind) -> None:
    """An async one can await them, but not inline: the worker does nothing else while it runs."""
    server = probe(start, tmp_path, kind)
    (reply,) = server.call("ask_others", to=1, timeout=10)

    assert reply["status"] == "ok"
    if kind[: len(INLINE)] == INLINE and "--threads" not in kind:
        assert reply["value"] == "this worker does nothing else while the command runs: use then()"
    else:
        assert reply["value"] == [2]


def test_what_cannot_be_asked_for_is_no_reason_to_die(start: Start, tmp_path: Path) -> None:
    """A name that is no text, a limit that is no number: wherever it is found out."""
    server = probe(start, tmp_path, ASGI)
    before = server.command.workers

    for which in range(5):
        server.call("ask_nonsense", which, to=1)
        assert len(server.call("note", "x")) == 2
        assert server.command.workers == before


def test_a_worker_that_asks_and_dies(start: Start, tmp_path: Path) -> None:
    """Nobody is there to be told."""
    gate = tmp_path / "gate"
    server = probe(start, tmp_path, ASGI)
    with Client(server.command.port) as client:
        held = server.begin("call", "hold", str(gate), to=2)
        eventually(lambda: server.noted() == ["holds 2"], "it has begun")
        client.request("/ask")
        eventually(lambda: "came /ask" in server.noted(), "it asks")
        assert server.call("die", to=1)[0]["status"] == "died"
    gate.touch()
    assert held.answer["ok"]

    eventually(lambda: [reply["id"] for reply in server.call("note", "x")] == [1, 2], "two again")
    assert "fault in the master" not in server.command.stderr


def test_a_worker_without_a_master(start: Start, tmp_path: Path) -> None:
    """Not in a worker: no `current_worker`."""
    from forkserve import current_worker

    with pytest.raises(RuntimeError, match="this process is no worker of forkserve"):
        current_worker()


def test_replies_that_are_too_large_together(start: Start, tmp_path: Path) -> None:
    """Each fits, all do not: it is told so."""
    server = Steered(
        start, tmp_path, *ASGI, "-w", 3, "--base-port", 0, "--mixin", "tests.integration.commands.test_worker_calls:Much"
    )

    assert server.call("ask_much", to=1)[0]["value"].startswith(
        "CommandError: the replies together cannot be sent: message of 14"
    )


class Much:
    """Its workers have much to say."""

    def child_much(self) -> str:
        return "x" * 700_000

    async def child_ask_much(self) -> str:
        try:
            await self.call("much", timeout=10)
        except Exception as error:  # noqa: BLE001
            return f"{type(error).__name__}: {error}"
        return "it fits"

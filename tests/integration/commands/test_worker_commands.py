"""Commands in real workers, for each way to run the app."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path

import pytest

from tests.integration.client import Client, get
from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.steer import Steered

APPS = "tests.integration.command_apps"
INLINE, THREADS, ASGI = (f"{APPS}:wsgi",), (f"{APPS}:wsgi", "--threads", 2), (f"{APPS}:asgi",)
# The other kinds use the event loop in the same way as ASGI.
KINDS: dict[str, tuple[object, ...]] = {
    "asgi": ASGI,
    "asgi-asyncio": (*ASGI, "--loop", "asyncio"),
    "threads": THREADS,
    "inline": INLINE,
}
USUAL = ("asgi", "inline")  # the others are heavy
MARKED = {name: pytest.param(one, id=name, marks=() if name in USUAL else pytest.mark.heavy) for name, one in KINDS.items()}
EVERY_KIND = pytest.mark.parametrize("kind", MARKED.values())
CONCURRENT = pytest.mark.parametrize("kind", [one for name, one in MARKED.items() if name != "inline"])
INLINE_KINDS = pytest.mark.parametrize("kind", [MARKED["inline"]])

Kind = tuple[object, ...]


def probe(start: Start, directory: Path, kind: Kind, workers: int = 2, **options: object) -> Steered:
    """Start an app whose workers have the commands of Probe."""
    return Steered(start, directory, *kind, "--workers", workers, "--base-port", 0, "--mixin", f"{APPS}:Probe", **options)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file; commands and requests run until it exists."""
    return tmp_path / "gate"


@EVERY_KIND
def test_a_command_runs_on_hook_then_child_in_each_worker(start: Start, tmp_path: Path, kind: Kind) -> None:
    """Each worker sends one reply, in the order of their ids; the command runs on the main thread."""
    server = probe(start, tmp_path, kind)
    replies = server.call("note", "x")

    assert [reply["value"] for reply in replies] == [[1, "x", 0, True], [2, "x", 0, True]]
    assert [reply["pid"] for reply in replies] == server.command.workers
    assert {(reply["status"], reply["generation"], reply["error"]) for reply in replies} == {("ok", 1, None)}
    for worker in (1, 2):
        lines = server.noted()
        assert lines.index(f"on x {worker}") < lines.index(f"child x {worker}")


@EVERY_KIND
def test_command_errors_are_replies_and_the_worker_lives(start: Start, tmp_path: Path, kind: Kind) -> None:
    """Unknown commands, wrong arguments, exceptions of every kind, values that are not JSON or too large."""
    server = probe(start, tmp_path, kind, workers=1)
    before = server.command.workers

    def failure(name: str, *args: object) -> tuple[str, str]:
        (reply,) = server.call(name, *args)
        assert reply["value"] is None
        return reply["status"], reply["error"]["type"]

    assert server.call("nots")[0]["error"]["message"] == "there is no command 'nots' (did you mean 'note'?)"
    assert failure("nots")[0] == "unknown"
    assert failure("note") == failure("note", 1, 2) == ("error", "TypeError")
    assert failure("fail") == ("error", "ValueError")
    assert failure("leave") == ("error", "SystemExit")
    assert failure("cancels") == ("error", "CancelledError")
    assert failure("set") == failure("much", 1 << 20) == ("error", "TypeError")
    assert len(server.call("much", 1_000_000)[0]["value"]) == 1_000_000
    assert json.dumps(server.call("nested", 199)[0]["value"]) == "[" * 199 + "]" * 199
    for levels in (200, 500, 900, 960, 980, 10_000):
        assert failure("nested", levels) == ("error", "TypeError")
    assert server.noted() == []
    assert server.call("note", "still")[0]["status"] == "ok"
    assert get(server.command.port).status == 200
    assert server.command.workers == before


@INLINE_KINDS
def test_an_inline_command_that_is_not_async_cannot_wait(start: Start, tmp_path: Path, kind: Kind) -> None:
    server = probe(start, tmp_path, kind, workers=1)
    (reply,) = server.call("waits")

    assert (reply["status"], reply["error"]["message"]) == ("error", "only an async def can wait")
    assert server.call("note", "still")[0]["status"] == "ok"


@EVERY_KIND
def test_the_death_of_a_worker_is_reported_at_once(start: Start, tmp_path: Path, kind: Kind) -> None:
    """The reply comes long before the timeout; the worker is replaced, and can be called again."""
    server = probe(start, tmp_path, kind)
    replies = server.call("die", to=2, timeout=600)

    assert [(reply["id"], reply["status"]) for reply in replies] == [(2, "died")]
    eventually(lambda: len(server.call("note", "again")) == 2, "a new worker")


@EVERY_KIND
def test_an_async_command_runs(start: Start, tmp_path: Path, kind: Kind) -> None:
    """It runs on the event loop; in an inline worker, on its own loop between requests."""
    server = probe(start, tmp_path, kind)

    assert [reply["value"] for reply in server.call("nap", 0.01)] == [[1, 0], [2, 0]]
    assert sorted(server.noted()) == ["child nap"] * 2 + ["on nap"] * 2
    assert get(server.command.port).status == 200
    assert server.call("nap", 0)[0]["status"] == "ok"


@CONCURRENT
def test_commands_run_during_requests(start: Start, tmp_path: Path, gate: Path, kind: Kind) -> None:
    """ASGI and threaded workers run a command while a request is running."""
    server = probe(start, tmp_path, kind, workers=1)
    with Client(server.command.port) as client:
        client.request(f"/hold?{gate}")
        eventually(lambda: "came /hold" in server.noted(), "the request has arrived")

        assert server.call("note", "x")[0]["value"] == [1, "x", 1, True]
        gate.touch()
        assert client.answer().status == 200


@pytest.mark.parametrize("name", ["note", "nap"])
@INLINE_KINDS
def test_an_inline_command_waits_for_the_running_request(start: Start, tmp_path: Path, gate: Path, kind: Kind, name: str) -> None:
    """It also waits for requests that arrived earlier, and runs before later requests."""
    server = probe(start, tmp_path, kind, workers=1)
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(Client(server.command.port)) for _ in range(2))
        first.request(f"/hold?{gate}")
        eventually(lambda: "came /hold" in server.noted(), "the request has arrived")
        call = server.begin("call", name, 0)
        late = server.call("note", "late", timeout=0.1)
        assert [reply["status"] for reply in late] == ["timeout"]
        assert server.noted() == ["came /hold"]
        gate.touch()
        assert first.answer().status == 200
        (reply,) = call.answer["result"]
        assert second.get().status == 200

    assert reply["status"] == "ok"
    assert 1 not in reply["value"][1:3], "the command ran within a request"
    noted = server.noted()
    assert noted.index("done") < noted.index("child 0 1" if name == "note" else "child nap") < noted.index("came /")
    assert not [line for line in noted if "late" in line]
    server.command.wait_for("command note is dropped: its deadline has passed before it was started")


@INLINE_KINDS
def test_an_inline_command_waits_for_the_close_of_a_large_response(start: Start, tmp_path: Path, kind: Kind) -> None:
    """A generator waiting for its client holds the worker; the command runs after its close()."""
    server = probe(start, tmp_path, kind, workers=1)
    with Client(server.command.port) as client:
        client.request("/large")
        client.head()
        call = server.begin("call", "note", "x")
        assert server.call("note", "late", timeout=0.1)[0]["status"] == "timeout"
        assert server.noted() == ["came /large"]
        for _ in range(160):
            client.exactly(65536)
        (reply,) = call.answer["result"]

    assert reply["value"] == [1, "x", 0, True]
    assert server.noted() == ["came /large", "closed", "on x 1", "child x 1"]


@INLINE_KINDS
def test_a_command_runs_after_the_client_of_a_large_response_disconnects(start: Start, tmp_path: Path, kind: Kind) -> None:
    server = probe(start, tmp_path, kind, workers=1)
    with Client(server.command.port) as client:
        client.request("/large")
        client.head()
        call = server.begin("call", "note", "x")
        eventually(lambda: server.noted() == ["came /large"], "the request has arrived")
    (reply,) = call.answer["result"]

    assert reply["value"] == [1, "x", 0, True]
    assert server.noted() == ["came /large", "closed", "on x 1", "child x 1"]


@EVERY_KIND
def test_commands_run_in_the_order_of_the_calls(start: Start, tmp_path: Path, kind: Kind) -> None:
    """Each worker runs them one at a time in call order, though some of them wait."""
    server = probe(start, tmp_path, kind)
    calls = []
    for number in range(30):
        calls.append(server.begin("call", "count", number))
        calls.append(server.begin("call", "nap", 0.001))
        calls[-1].answer  # noqa: B018 - the next call begins after it
    assert {reply["status"] for one in calls[::2] for reply in one.answer["result"]} == {"ok"}

    assert [reply["value"] for reply in server.call("counted")] == [list(range(30))] * 2


@EVERY_KIND
def test_commands_run_one_at_a_time(start: Start, tmp_path: Path, gate: Path, kind: Kind) -> None:
    """The second command waits for the first, even if an event loop could run both."""
    server = probe(start, tmp_path, kind, workers=1)
    first = server.begin("call", "hold_softly", str(gate))
    eventually(lambda: server.noted() == ["holds 1"], "the first command runs")

    assert server.call("note", "x", timeout=0.1)[0]["status"] == "timeout"
    gate.touch()
    assert first.answer["result"][0]["value"] == 1
    assert server.noted() == ["holds 1"]


@EVERY_KIND
def test_a_timeout_drops_the_reply_and_skips_unstarted_commands(start: Start, tmp_path: Path, gate: Path, kind: Kind) -> None:
    """A started command finishes, its reply is dropped, and a line is logged; a command that was not started never runs."""
    server = probe(start, tmp_path, kind)

    def is_started() -> bool:
        """On a busy machine the worker may not start the command in time, so this is tried again."""
        answer = server.ask("call", "hold", str(gate), to=2, timeout=0.1)
        assert answer["error"]["code"] == "timeout"
        assert answer["result"][0]["status"] == "timeout"
        assert answer["result"][0]["seconds"] >= 0.1
        return "holds 2" in server.noted()

    eventually(is_started)
    assert server.call("note", "never", to=2, timeout=0.1)[0]["status"] == "timeout"

    gate.touch()
    server.command.wait_for(r"master: worker 2 \(pid \d+\): a late reply to a command was dropped: 'hold'")
    server.command.wait_for("worker 2 gen 1: command note is dropped: its deadline has passed before it was started")
    assert [reply["status"] for reply in server.call("note", "after")] == ["ok", "ok"]
    assert not [line for line in server.noted() if "never" in line]


@EVERY_KIND
def test_any_picks_an_idle_worker(start: Start, tmp_path: Path, gate: Path, kind: Kind) -> None:
    """Exactly one worker runs the command, and never a worker with a running command."""
    server = probe(start, tmp_path, kind)
    held = server.begin("call", "hold", str(gate), to=1)
    eventually(lambda: server.noted() == ["holds 1"], "the command runs")

    for _ in range(5):
        assert [reply["id"] for reply in server.call("note", "x", to="any")] == [2]
    gate.touch()
    assert held.answer["result"][0]["id"] == 1


@INLINE_KINDS
def test_any_never_picks_an_inline_worker_with_a_running_request(start: Start, tmp_path: Path, gate: Path, kind: Kind) -> None:
    server = probe(start, tmp_path, kind)
    with Client(server.command.ports[0]) as client:
        client.request(f"/hold?{gate}")
        eventually(lambda: server.noted() == ["came /hold"], "the request has arrived")

        for _ in range(5):
            assert [reply["id"] for reply in server.call("note", "x", to="any")] == [2]
        gate.touch()
        assert client.answer().status == 200


@EVERY_KIND
def test_any_waits_until_a_worker_is_idle(start: Start, tmp_path: Path, gate: Path, kind: Kind) -> None:
    """If no worker is idle, the call waits for the first idle one; each of several calls runs once."""
    server = probe(start, tmp_path, kind)
    held = server.begin("call", "hold", str(gate))
    eventually(lambda: sorted(server.noted()) == ["holds 1", "holds 2"], "both commands run")
    assert server.call("note", "late", to="any", timeout=0.1)[0]["status"] == "timeout"
    waiting = [server.begin("call", "note", f"w{number}", to="any") for number in range(6)]
    gate.touch()

    assert [len(one.answer["result"]) for one in waiting] == [1] * 6
    assert len(held.answer["result"]) == 2
    noted = [line.split()[1] for line in server.noted() if line.startswith("child")]
    assert sorted(noted) == [f"w{number}" for number in range(6)]


@EVERY_KIND
def test_a_waiting_call_to_any_is_refused_at_the_stop(start: Start, tmp_path: Path, gate: Path, kind: Kind) -> None:
    server = probe(start, tmp_path, kind, workers=1)
    held = server.begin("call", "hold", str(gate))
    eventually(lambda: server.noted() == ["holds 1"], "the command runs")
    waiting = server.begin("call", "note", "x", to="any", timeout=None)
    assert server.call("note", "y", timeout=0.05)[0]["status"] == "timeout"  # so the previous call has arrived
    server.command.kill(signal.SIGTERM)

    assert waiting.answer["error"] == {"code": "refused", "message": "the server is stopping"}
    gate.touch()
    assert held.answer["result"][0]["status"] == "ok"
    server.command.wait()
    assert "on x 1" not in server.noted()


def test_a_booting_worker_gets_no_commands(start: Start, tmp_path: Path) -> None:
    boot = tmp_path / "boot"
    server = Steered(
        start, tmp_path, *ASGI, "--workers", 2, "--base-port", 0, "--mixin", f"{APPS}:SlowBoot",
        ready=False, env={"BOOT": str(boot)},
    )  # fmt: skip
    eventually(lambda: server.call("note", "x"), "the reply of the first worker")

    assert [reply["id"] for reply in server.call("note", "y")] == [1]
    assert server.ask("call", "note", "z", to=2)["error"]["message"].startswith("worker 2 cannot be called: it is not ready")
    boot.touch()
    server.command.ready()
    assert [reply["id"] for reply in server.call("note", "y")] == [1, 2]


@EVERY_KIND
def test_a_draining_worker_gets_no_commands(start: Start, tmp_path: Path, gate: Path, kind: Kind) -> None:
    server = probe(start, tmp_path, kind)
    with Client(server.command.ports[1]) as client:
        client.request(f"/hold?{gate}")
        eventually(lambda: server.noted() == ["came /hold"], "the request has arrived")
        scaled = server.begin("scale", 1)
        server.command.wait_for("1 worker wanted")

        assert [reply["id"] for reply in server.call("note", "x")] == [1]
        assert [reply["id"] for reply in server.call("note", "x", to="any")] == [1]
        assert "cannot be called" in server.ask("call", "note", "x", to=2)["error"]["message"]
        gate.touch()
        assert client.answer().status == 200
    assert scaled.answer["result"] == {"workers": 1}
    server.command.kill(signal.SIGTERM)
    server.command.wait()


def test_a_call_to_an_unknown_worker_is_a_usage_error(start: Start, tmp_path: Path) -> None:
    server = probe(start, tmp_path, ASGI)

    assert server.ask("call", "note", "x", to=3)["error"] == {"code": "usage", "message": "there is no worker 3"}
    assert not server.ask("call", "note", "x", to="some")["ok"]

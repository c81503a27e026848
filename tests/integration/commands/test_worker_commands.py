"""Commands in real workers, however they answer requests. Ids are those of the ancestors' features."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import pytest

from tests.integration.client import Client, get
from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.steer import Steered

APPS = "tests.integration.command_apps"
INLINE, THREADS, ASGI = (f"{APPS}:wsgi",), (f"{APPS}:wsgi", "--threads", 2), (f"{APPS}:asgi",)
# The other two use of the loop what ASGI uses as well.
KINDS: dict[str, tuple[object, ...]] = {
    "asgi": ASGI,
    "asgi-asyncio": (*ASGI, "--loop", "asyncio"),
    "threads": THREADS,
    "inline": INLINE,
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
BESIDE = pytest.mark.parametrize("kind", [one for name, one in KINDS.items() if "inline" not in name])
BETWEEN = pytest.mark.parametrize("kind", [one for name, one in KINDS.items() if "inline" in name])

Kind = tuple[object, ...]


def probe(start: Start, directory: Path, kind: Kind, workers: int = 2, **options: object) -> Steered:
    """Start an app whose workers have the commands of Probe."""
    return Steered(start, directory, *kind, "--workers", workers, "--base-port", 0, "--mixin", f"{APPS}:Probe", **options)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that something waits for."""
    return tmp_path / "gate"


@EVERY_KIND
def test_on_then_child_in_each_worker(start: Start, tmp_path: Path, kind: Kind) -> None:
    """One reply of each, in the order of their ids; on the main thread."""
    server = probe(start, tmp_path, kind)
    replies = server.call("note", "x")

    assert [reply["value"] for reply in replies] == [[1, "x", 0, True], [2, "x", 0, True]]
    assert [reply["pid"] for reply in replies] == server.command.workers
    assert {(reply["status"], reply["generation"], reply["error"]) for reply in replies} == {("ok", 1, None)}
    for worker in (1, 2):
        lines = server.noted()
        assert lines.index(f"on x {worker}") < lines.index(f"child x {worker}")


@EVERY_KIND
def test_what_goes_wrong_is_a_reply_and_the_worker_lives(start: Start, tmp_path: Path, kind: Kind) -> None:
    """Unknown, wrong arguments, exceptions of every sort, values that are not JSON or too large."""
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
    assert server.noted() == []
    assert server.call("note", "still")[0]["status"] == "ok"
    assert get(server.command.port).status == 200
    assert server.command.workers == before


@BETWEEN
def test_only_an_async_def_can_wait_between_requests(start: Start, tmp_path: Path, kind: Kind) -> None:
    server = probe(start, tmp_path, kind, workers=1)
    (reply,) = server.call("waits")

    assert (reply["status"], reply["error"]["message"]) == ("error", "only an async def can wait")
    assert server.call("note", "still")[0]["status"] == "ok"


@EVERY_KIND
def test_a_worker_that_dies_of_it(start: Start, tmp_path: Path, kind: Kind) -> None:
    """Known at once, long before the limit; it is replaced, and can be asked again."""
    server = probe(start, tmp_path, kind)
    replies = server.call("die", to=2, timeout=600)

    assert [(reply["id"], reply["status"]) for reply in replies] == [(2, "died")]
    eventually(lambda: len(server.call("note", "again")) == 2, "a new worker")


@EVERY_KIND
def test_async(start: Start, tmp_path: Path, kind: Kind) -> None:
    """On the loop; inline, between requests, on a loop of their own."""
    server = probe(start, tmp_path, kind)

    assert [reply["value"] for reply in server.call("nap", 0.01)] == [[1, 0], [2, 0]]
    assert sorted(server.noted()) == ["child nap"] * 2 + ["on nap"] * 2
    assert get(server.command.port).status == 200
    assert server.call("nap", 0)[0]["status"] == "ok"


@BESIDE
def test_beside_requests(start: Start, tmp_path: Path, gate: Path, kind: Kind) -> None:
    """ASGI and threads need not wait for those in hand."""
    server = probe(start, tmp_path, kind, workers=1)
    with Client(server.command.port) as client:
        client.request(f"/hold?{gate}")
        eventually(lambda: "came /hold" in server.noted(), "the request")

        assert server.call("note", "x")[0]["value"] == [1, "x", 1, True]
        gate.touch()
        assert client.answer().status == 200


@pytest.mark.parametrize("name", ["note", "nap"])
@BETWEEN
def test_never_inside_a_request(start: Start, tmp_path: Path, gate: Path, kind: Kind, name: str) -> None:
    """It waits for the one in hand, and for those that were there before; then it runs before those that come later."""
    server = probe(start, tmp_path, kind, workers=1)
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(Client(server.command.port)) for _ in range(2))
        first.request(f"/hold?{gate}")
        eventually(lambda: "came /hold" in server.noted(), "the request")
        asked = server.begin("call", name, 0)
        late = server.call("note", "late", timeout=0.1)
        assert [reply["status"] for reply in late] == ["timeout"]
        assert server.noted() == ["came /hold"]
        gate.touch()
        assert first.answer().status == 200
        (reply,) = asked.answer["result"]
        assert second.get().status == 200

    assert reply["status"] == "ok"
    assert 1 not in reply["value"][1:3], "inside"
    noted = server.noted()
    assert noted.index("done") < noted.index("child 0 1" if name == "note" else "child nap") < noted.index("came /")
    assert not [line for line in noted if "late" in line]
    server.command.wait_for("command note was not started in time, and never will be")


@BETWEEN
def test_never_before_a_large_answer_is_closed(start: Start, tmp_path: Path, kind: Kind) -> None:
    """A generator that waits for its client holds the worker, and a command waits for its close()."""
    server = probe(start, tmp_path, kind, workers=1)
    with Client(server.command.port) as client:
        client.request("/large")
        client.head()
        asked = server.begin("call", "note", "x")
        assert server.call("note", "late", timeout=0.1)[0]["status"] == "timeout"
        assert server.noted() == ["came /large"]
        for _ in range(160):
            client.exactly(65536)
        (reply,) = asked.answer["result"]

    assert reply["value"] == [1, "x", 0, True]
    assert server.noted() == ["came /large", "closed", "on x 1", "child x 1"]


@BETWEEN
def test_a_command_after_a_client_that_left_a_large_answer(start: Start, tmp_path: Path, kind: Kind) -> None:
    server = probe(start, tmp_path, kind, workers=1)
    with Client(server.command.port) as client:
        client.request("/large")
        client.head()
        asked = server.begin("call", "note", "x")
        eventually(lambda: server.noted() == ["came /large"], "it came")
    (reply,) = asked.answer["result"]

    assert reply["value"] == [1, "x", 0, True]
    assert server.noted() == ["came /large", "closed", "on x 1", "child x 1"]


@EVERY_KIND
def test_in_the_order_of_the_calls(start: Start, tmp_path: Path, kind: Kind) -> None:
    """Each worker has them in the order in which they were asked for, and one at a time, though some of them wait."""
    server = probe(start, tmp_path, kind)
    asked = []
    for number in range(30):
        asked.append(server.begin("call", "count", number))
        asked.append(server.begin("call", "nap", 0.001))
        asked[-1].answer  # noqa: B018 - the next is asked for after it
    assert {reply["status"] for one in asked[::2] for reply in one.answer["result"]} == {"ok"}

    assert [reply["value"] for reply in server.call("counted")] == [list(range(30))] * 2


@EVERY_KIND
def test_one_at_a_time(start: Start, tmp_path: Path, gate: Path, kind: Kind) -> None:
    """The second waits for the first, even where a loop could run both."""
    server = probe(start, tmp_path, kind, workers=1)
    first = server.begin("call", "hold_softly", str(gate))
    eventually(lambda: server.noted() == ["holds 1"], "the first has begun")

    assert server.call("note", "x", timeout=0.1)[0]["status"] == "timeout"
    gate.touch()
    assert first.answer["result"][0]["value"] == 1
    assert server.noted() == ["holds 1"]


@EVERY_KIND
def test_a_limit(start: Start, tmp_path: Path, gate: Path, kind: Kind) -> None:
    """What was started is finished, and its reply is dropped with a line in the log; what was not, never runs."""
    server = probe(start, tmp_path, kind)

    def is_started() -> bool:
        """A worker that does not get the processor in time does not start it."""
        answer = server.ask("call", "hold", str(gate), to=2, timeout=0.1)
        assert answer["error"]["code"] == "timeout"
        assert answer["result"][0]["status"] == "timeout"
        assert answer["result"][0]["seconds"] >= 0.1
        return "holds 2" in server.noted()

    eventually(is_started)
    assert server.call("note", "never", to=2, timeout=0.1)[0]["status"] == "timeout"

    gate.touch()
    server.command.wait_for(r"master: worker 2 \(pid \d+\): a late reply to a command was dropped: 'hold'")
    server.command.wait_for("worker 2 gen 1: command note was not started in time, and never will be")
    assert [reply["status"] for reply in server.call("note", "after")] == ["ok", "ok"]
    assert not [line for line in server.noted() if "never" in line]


@EVERY_KIND
def test_any_is_the_one_that_is_idle(start: Start, tmp_path: Path, gate: Path, kind: Kind) -> None:
    """Exactly one, and none that has a command in hand."""
    server = probe(start, tmp_path, kind)
    held = server.begin("call", "hold", str(gate), to=1)
    eventually(lambda: server.noted() == ["holds 1"], "it has begun")

    for _ in range(5):
        assert [reply["id"] for reply in server.call("note", "x", to="any")] == [2]
    gate.touch()
    assert held.answer["result"][0]["id"] == 1


@BETWEEN
def test_any_is_none_that_is_in_a_request(start: Start, tmp_path: Path, gate: Path, kind: Kind) -> None:
    server = probe(start, tmp_path, kind)
    with Client(server.command.ports[0]) as client:
        client.request(f"/hold?{gate}")
        eventually(lambda: server.noted() == ["came /hold"], "the request")

        for _ in range(5):
            assert [reply["id"] for reply in server.call("note", "x", to="any")] == [2]
        gate.touch()
        assert client.answer().status == 200


@EVERY_KIND
def test_any_waits_its_turn(start: Start, tmp_path: Path, gate: Path, kind: Kind) -> None:
    """With none idle, it is done when the first is; each of several by one, and once."""
    server = probe(start, tmp_path, kind)
    held = server.begin("call", "hold", str(gate))
    eventually(lambda: sorted(server.noted()) == ["holds 1", "holds 2"], "both have begun")
    assert server.call("note", "late", to="any", timeout=0.1)[0]["status"] == "timeout"
    waiting = [server.begin("call", "note", f"w{number}", to="any") for number in range(6)]
    gate.touch()

    assert [len(one.answer["result"]) for one in waiting] == [1] * 6
    assert len(held.answer["result"]) == 2
    noted = [line.split()[1] for line in server.noted() if line.startswith("child")]
    assert sorted(noted) == [f"w{number}" for number in range(6)]


@EVERY_KIND
def test_any_for_which_nobody_comes_ends_with_the_server(start: Start, tmp_path: Path, gate: Path, kind: Kind) -> None:
    server = probe(start, tmp_path, kind, workers=1)
    held = server.begin("call", "hold", str(gate))
    eventually(lambda: server.noted() == ["holds 1"], "it has begun")
    waiting = server.begin("call", "note", "x", to="any", timeout=None)
    assert server.call("note", "y", timeout=0.05)[0]["status"] == "timeout"  # so the one before has come
    server.command.kill(signal.SIGTERM)

    assert waiting.answer["error"] == {"code": "refused", "message": "the server is stopping"}
    gate.touch()
    assert held.answer["result"][0]["status"] == "ok"
    server.command.wait()
    assert "on x 1" not in server.noted()


def test_who_boots_is_not_asked(start: Start, tmp_path: Path) -> None:
    boot = tmp_path / "boot"
    server = Steered(
        start, tmp_path, *ASGI, "--workers", 2, "--base-port", 0, "--mixin", f"{APPS}:SlowBoot",
        ready=False, env={"BOOT": str(boot)},
    )  # fmt: skip
    eventually(lambda: server.call("note", "x"), "the first")

    assert [reply["id"] for reply in server.call("note", "y")] == [1]
    assert server.ask("call", "note", "z", to=2)["error"]["message"].startswith("worker 2 cannot be asked: it is not ready")
    boot.touch()
    server.command.ready()
    assert [reply["id"] for reply in server.call("note", "y")] == [1, 2]


@EVERY_KIND
def test_who_drains_is_not_asked(start: Start, tmp_path: Path, gate: Path, kind: Kind) -> None:
    server = probe(start, tmp_path, kind)
    with Client(server.command.ports[1]) as client:
        client.request(f"/hold?{gate}")
        eventually(lambda: server.noted() == ["came /hold"], "the request")
        scaled = server.begin("scale", 1)
        server.command.wait_for("1 worker wanted")

        assert [reply["id"] for reply in server.call("note", "x")] == [1]
        assert [reply["id"] for reply in server.call("note", "x", to="any")] == [1]
        assert "cannot be asked" in server.ask("call", "note", "x", to=2)["error"]["message"]
        gate.touch()
        assert client.answer().status == 200
    assert scaled.answer["result"] == {"workers": 1}
    server.command.kill(signal.SIGTERM)
    server.command.wait()


def test_nobody_of_that_id(start: Start, tmp_path: Path) -> None:
    server = probe(start, tmp_path, ASGI)

    assert server.ask("call", "note", "x", to=3)["error"] == {"code": "usage", "message": "there is no worker 3"}
    assert not server.ask("call", "note", "x", to="some")["ok"]

"""The examples of workers without HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.command import DEADLINE, Command, eventually, run, sockets, state
from tests.integration.conftest import Start
from tests.integration.steered import Remote

# say


def speakers(command: Command, words: str) -> set[tuple[str, ...]]:
    """The workers that have printed these words: id, pid, and the pid noted before the fork."""
    return set(re.findall(rf"^worker (\d) \((\d+)\), child of (\d+): {words}$", command.stdout, re.MULTILINE))


def test_say_loads_its_module_only_in_the_master(start: Start) -> None:
    """The module runs once, in the master; `run` runs in each worker, and again in a replacement."""
    command = start(2, program=("example_apps/say.py",)).ready()
    first, second = command.workers
    expected = {("1", str(first), str(command.pid)), ("2", str(second), str(command.pid))}
    eventually(lambda: speakers(command, "hello") == expected, lambda: command.stdout)

    os.kill(first, signal.SIGKILL)
    eventually(lambda: len(speakers(command, "hello")) == 3, "a new worker")
    assert {one[0] for one in speakers(command, "hello") - expected} == {"1"}


def test_say_runs_its_command_between_two_outputs(start: Start) -> None:
    """The command changes the words of all workers."""
    command = start(2, program=("example_apps/say.py",)).ready()
    done = run("ctl", "--name", "say", "call", "say", "good bye", "--json")

    assert [one["value"] for one in json.loads(done.stdout)["result"]] == ["no more hello"] * 2
    eventually(lambda: len(speakers(command, "good bye")) == 2, lambda: command.stdout)


# tcp_echo


@pytest.fixture
def echo(start: Start) -> Command:
    """The example with four workers on one socket."""
    return start("127.0.0.1:0", program=("example_apps/tcp_echo.py",)).ready()


@contextlib.contextmanager
def connected(command: Command) -> Iterator[socket.socket]:
    """A connected client."""
    with socket.create_connection(("127.0.0.1", command.port), DEADLINE) as client:
        yield client


def test_echo_serves_one_client_per_worker(echo: Command) -> None:
    """Four clients are served at once; a fifth waits until a worker is free."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(echo)) for _ in range(4)]
        for number, client in enumerate(clients):
            for text in (b"%d\n" % number, b"\xff\0", b"no line"):
                client.sendall(text)
                assert client.recv(100) == text
        last = stack.enter_context(connected(echo))
        last.sendall(b"me too")
        clients[2].close()
        assert last.recv(100) == b"me too"
    assert len(echo.workers) == 4


def test_echo_returns_large_data(echo: Command) -> None:
    data = os.urandom(300_000)
    with connected(echo) as client:
        received = b""
        for start in range(0, len(data), 10_000):
            client.sendall(data[start : start + 10_000])
            while len(received) < start + 10_000:
                received += client.recv(65536)

    assert received == data


def test_echo_workers_survive_client_resets(echo: Command) -> None:
    """No worker dies when a client resets its connection."""
    before = echo.workers
    for _ in range(20):
        with connected(echo) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(b"bye")
    with connected(echo) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"

    assert echo.workers == before
    assert "died" not in echo.stderr


@pytest.mark.heavy
def test_echo_answers_received_data_before_it_stops(echo: Command) -> None:
    """Data received before the stop is answered, and then the connection is closed."""
    with connected(echo) as client:
        client.sendall(b"one")
        assert client.recv(100) == b"one"
        eventually(
            lambda: all(state(pid) == "S" for pid in echo.workers), "all workers sleep, one of them in its client's connection"
        )
        echo.kill(signal.SIGTERM)
        echo.wait_for("stopping")
        client.sendall(b"two")
        assert client.recv(100) == b"two"
        assert client.recv(100) == b""
    echo.wait()


# pool


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the pool's socket."""
    return tmp_path / "pool.sock"


@pytest.fixture
def pool(start: Start, path: Path) -> Command:
    """The example with a pool of four workers."""
    return start(path, program=("example_apps/pool.py",)).ready()


class Message:
    """A message that has been sent to the pool, as any process can send one."""

    def __init__(self, path: Path, text: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE)
        self._socket.connect(str(path))
        self._socket.sendall(text.encode() + b"\n")

    @property
    def answer(self) -> str:
        """The answer, waited for; empty if the worker has died."""
        with self._socket, self._socket.makefile() as lines, contextlib.suppress(ConnectionResetError):
            return lines.read()
        return ""

    @property
    def worker(self) -> int:
        """The id of the worker that handled the message."""
        return int(self.answer.split()[-1])


def test_the_pool_handles_each_message_once(pool: Command, path: Path) -> None:
    """One worker handles each message, also a message that waits while all workers are busy."""
    messages = [Message(path, f"message {number}") for number in range(100)]

    answers = [message.answer for message in messages]
    assert [answer.rsplit(" ", 1)[0] for answer in answers] == [f"message {number}: done by worker" for number in range(100)]
    assert {answer.rsplit(" ", 1)[1] for answer in answers} <= {"1\n", "2\n", "3\n", "4\n"}


def busy(command: Command, before: dict[int, int]) -> list[int]:
    """The workers that handle a message: they hold more sockets than before."""
    return [pid for pid in command.workers if sockets(pid) > before.get(pid, 0)]


def test_the_pool_gives_messages_only_to_idle_workers(pool: Command, path: Path) -> None:
    """While three workers are busy, the fourth handles all messages."""
    before = {pid: sockets(pid) for pid in pool.workers}
    long = [Message(path, "sleep 2") for _ in range(3)]
    eventually(lambda: len(busy(pool, before)) == 3, "three busy workers")

    assert len({Message(path, "quick").worker for _ in range(10)}) == 1
    assert len({message.worker for message in long}) == 3


def test_the_sender_notices_a_dead_pool_worker(pool: Command, path: Path) -> None:
    """The sender's connection closes, so it may send the message again; other senders are not affected."""
    before = {pid: sockets(pid) for pid in pool.workers}
    message = Message(path, "sleep 100")
    (pid,) = eventually(lambda: busy(pool, before), "one busy worker")
    os.kill(pid, signal.SIGKILL)

    assert message.answer == ""
    assert Message(path, "again").answer.startswith("again: done by worker ")


def test_pool_workers_survive_senders_that_disconnect(pool: Command, path: Path) -> None:
    """No worker dies when a sender disconnects early."""
    before = pool.workers
    for text in (b"", b"half", b"\xff\xfe\n", b"whole\n"):
        with socket.socket(socket.AF_UNIX) as sender:
            sender.connect(str(path))
            sender.sendall(text)
    assert Message(path, "\N{SNOWMAN}").answer.startswith("\N{SNOWMAN}: done by")

    assert pool.workers == before


def test_the_pool_finishes_its_messages_before_it_stops(pool: Command, path: Path) -> None:
    """A running message is finished; then the socket is removed."""
    before = {pid: sockets(pid) for pid in pool.workers}
    message = Message(path, "sleep 1")
    eventually(lambda: busy(pool, before), "one busy worker")
    pool.kill(signal.SIGTERM)

    assert message.answer.startswith("sleep 1: done by worker ")
    pool.wait()
    assert not path.exists()


def test_a_scaled_down_pool_worker_finishes_its_message(start: Start, tmp_path: Path, path: Path) -> None:
    """A stopping worker takes no further message, but finishes its current one."""
    remote = Remote(start, tmp_path, "example_apps.pool:Pooled", workers=4, bind=[f"unix:{path}"])
    before = {pid: sockets(pid) for pid in remote.command.workers}
    long = [Message(path, "sleep 1") for _ in range(4)]
    eventually(lambda: len(busy(remote.command, before)) == 4, "four busy workers")
    scaled = remote.begin("scale", 1)
    later = [Message(path, "later") for _ in range(10)]

    assert {message.worker for message in later} == {1}
    assert sorted(message.worker for message in long) == [1, 2, 3, 4]
    assert scaled.answer["ok"]
    assert remote.ask("scale", 4)["ok"]


def test_the_pool_is_called_through_the_master(pool: Command) -> None:
    """`forkserve ctl call` reaches a pool worker without the socket of the pool."""
    done = run("ctl", "--name", "pooled", "call", "work", "hello", "--to", "any", "--json")

    (reply,) = json.loads(done.stdout)["result"]
    assert reply["value"] == f"hello: done by worker {reply['id']}"


def test_calls_to_any_never_reach_a_stopping_worker(start: Start, tmp_path: Path) -> None:
    """Exactly one idle worker runs each call, and never a worker that is about to stop."""
    remote = Remote(start, tmp_path, "Idle", workers=4)
    go_on = tmp_path / "go on"
    long = [remote.begin("call", "hold", str(go_on), to="any") for _ in range(4)]
    for worker in range(1, 5):
        eventually(Path(f"{go_on}.{worker}").exists, f"worker {worker} runs the command")
    scaled = remote.begin("scale", 1)
    later = [remote.begin("call", "hello", str(number), to="any") for number in range(10)]
    go_on.touch()

    replies = [request.answer["result"] for request in later]
    assert [[one["value"] for one in reply] for reply in replies] == [[f"hello {number} from 1"] for number in range(10)]
    assert sorted(request.answer["result"][0]["id"] for request in long) == [1, 2, 3, 4]
    assert scaled.answer["ok"]
    assert remote.ask("scale", 4)["ok"]

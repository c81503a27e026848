"""The examples of the prefork libraries that forkserve comes from. Ids are those of their features."""

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
    """Who has said that: id, pid, and the pid that was noted before the fork."""
    return set(re.findall(rf"^worker (\d) \((\d+)\), child of (\d+): {words}$", command.stdout, re.MULTILINE))


def test_say(start: Start) -> None:
    """The module runs once, in the master; `run` runs in each worker, and again in one that replaces it."""
    command = start(2, program=("example_apps/say.py",)).ready()
    first, second = command.workers
    expected = {("1", str(first), str(command.pid)), ("2", str(second), str(command.pid))}
    eventually(lambda: speakers(command, "hello") == expected, lambda: command.stdout)

    os.kill(first, signal.SIGKILL)
    eventually(lambda: len(speakers(command, "hello")) == 3, "a new worker")
    assert {one[0] for one in speakers(command, "hello") - expected} == {"1"}


def test_say_something_else(start: Start) -> None:
    """Its command is obeyed between two sayings."""
    command = start(2, program=("example_apps/say.py",)).ready()
    told = run("ctl", "--name", "say", "call", "say", "good bye", "--json")

    assert [one["value"] for one in json.loads(told.stdout)["result"]] == ["no more hello"] * 2
    eventually(lambda: len(speakers(command, "good bye")) == 2, lambda: command.stdout)


# tcp_echo


@pytest.fixture
def echo(start: Start) -> Command:
    """Four workers on one socket."""
    return start("127.0.0.1:0", program=("example_apps/tcp_echo.py",)).ready()


@contextlib.contextmanager
def connected(command: Command) -> Iterator[socket.socket]:
    """A client."""
    with socket.create_connection(("127.0.0.1", command.port), DEADLINE) as client:
        yield client


def test_echo(echo: Command) -> None:
    """As many clients at once as there are workers; others wait until one is free."""
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


def test_echo_of_much(echo: Command) -> None:
    data = os.urandom(300_000)
    with connected(echo) as client:
        received = b""
        for start in range(0, len(data), 10_000):
            client.sendall(data[start : start + 10_000])
            while len(received) < start + 10_000:
                received += client.recv(65536)

    assert received == data


def test_echo_when_a_client_breaks_off(echo: Command) -> None:
    """No worker dies of it."""
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
def test_echo_when_it_stops(echo: Command) -> None:
    """What has been received is answered, and then the client sees the end."""
    with connected(echo) as client:
        client.sendall(b"one")
        assert client.recv(100) == b"one"
        eventually(lambda: all(state(pid) == "S" for pid in echo.workers), "they wait, one of them for this client")
        echo.kill(signal.SIGTERM)
        echo.wait_for("stopping")
        client.sendall(b"two")
        assert client.recv(100) == b"two"
        assert client.recv(100) == b""
    echo.wait()


# pool


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The socket of a pool of four workers."""
    return tmp_path / "pool.sock"


@pytest.fixture
def pool(start: Start, path: Path) -> Command:
    """The pool."""
    return start(path, program=("example_apps/pool.py",)).ready()


class Message:
    """A message under way, as any process can send one."""

    def __init__(self, path: Path, text: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE)
        self._socket.connect(str(path))
        self._socket.sendall(text.encode() + b"\n")

    @property
    def answer(self) -> str:
        """What came back, waited for; nothing if the worker has died."""
        with self._socket, self._socket.makefile() as lines, contextlib.suppress(ConnectionResetError):
            return lines.read()
        return ""

    @property
    def worker(self) -> int:
        """Who has done it."""
        return int(self.answer.split()[-1])


def test_pool(pool: Command, path: Path) -> None:
    """Each message is done once, by one worker; also those that wait while all are busy."""
    messages = [Message(path, f"message {number}") for number in range(100)]

    answers = [message.answer for message in messages]
    assert [answer.rsplit(" ", 1)[0] for answer in answers] == [f"message {number}: done by worker" for number in range(100)]
    assert {answer.rsplit(" ", 1)[1] for answer in answers} <= {"1\n", "2\n", "3\n", "4\n"}


def busy(command: Command, before: dict[int, int]) -> list[int]:
    """The workers that have a message in hand: they hold a socket more than before."""
    return [pid for pid in command.workers if sockets(pid) > before.get(pid, 0)]


def test_pool_with_busy_workers(pool: Command, path: Path) -> None:
    """A message is never given to one that is not idle."""
    before = {pid: sockets(pid) for pid in pool.workers}
    long = [Message(path, "sleep 2") for _ in range(3)]
    eventually(lambda: len(busy(pool, before)) == 3, "three are busy")

    assert len({Message(path, "quick").worker for _ in range(10)}) == 1
    assert len({message.worker for message in long}) == 3


def test_pool_with_a_worker_that_dies(pool: Command, path: Path) -> None:
    """Its sender sees the end, and may try again; nobody else is concerned."""
    before = {pid: sockets(pid) for pid in pool.workers}
    message = Message(path, "sleep 100")
    (pid,) = eventually(lambda: busy(pool, before), "one is busy")
    os.kill(pid, signal.SIGKILL)

    assert message.answer == ""
    assert Message(path, "again").answer.startswith("again: done by worker ")


def test_pool_with_senders_that_go_away(pool: Command, path: Path) -> None:
    """No worker dies of it."""
    before = pool.workers
    for text in (b"", b"half", b"\xff\xfe\n", b"whole\n"):
        with socket.socket(socket.AF_UNIX) as sender:
            sender.connect(str(path))
            sender.sendall(text)
    assert Message(path, "\N{SNOWMAN}").answer.startswith("\N{SNOWMAN}: done by")

    assert pool.workers == before


def test_pool_that_stops(pool: Command, path: Path) -> None:
    """What is in hand is done; then the socket is removed."""
    before = {pid: sockets(pid) for pid in pool.workers}
    message = Message(path, "sleep 1")
    eventually(lambda: busy(pool, before), "one is busy")
    pool.kill(signal.SIGTERM)

    assert message.answer.startswith("sleep 1: done by worker ")
    pool.wait()
    assert not path.exists()


def test_pool_that_shrinks(start: Start, tmp_path: Path, path: Path) -> None:
    """A worker that was told to end takes no message more, but finishes the one that it has."""
    remote = Remote(start, tmp_path, "example_apps.pool:Pooled", workers=4, bind=[f"unix:{path}"])
    before = {pid: sockets(pid) for pid in remote.command.workers}
    long = [Message(path, "sleep 1") for _ in range(4)]
    eventually(lambda: len(busy(remote.command, before)) == 4, "all are busy")
    scaled = remote.begin("scale", 1)
    later = [Message(path, "later") for _ in range(10)]

    assert {message.worker for message in later} == {1}
    assert sorted(message.worker for message in long) == [1, 2, 3, 4]
    assert scaled.answer["ok"]
    assert remote.ask("scale", 4)["ok"]


def test_pool_by_way_of_the_master(pool: Command) -> None:
    """The same without a connection."""
    told = run("ctl", "--name", "pooled", "call", "work", "hello", "--to", "any", "--json")

    (reply,) = json.loads(told.stdout)["result"]
    assert reply["value"] == f"hello: done by worker {reply['id']}"


def test_calls_to_any_while_the_pool_shrinks(start: Start, tmp_path: Path) -> None:
    """One that is idle gets it, exactly one, and never one that is about to end."""
    remote = Remote(start, tmp_path, "Idle", workers=4)
    go_on = tmp_path / "go on"
    long = [remote.begin("call", "hold", str(go_on), to="any") for _ in range(4)]
    for worker in range(1, 5):
        eventually(Path(f"{go_on}.{worker}").exists, f"worker {worker} holds")
    scaled = remote.begin("scale", 1)
    later = [remote.begin("call", "hello", str(number), to="any") for number in range(10)]
    go_on.touch()

    replies = [request.answer["result"] for request in later]
    assert [[one["value"] for one in reply] for reply in replies] == [[f"hello {number} from 1"] for number in range(10)]
    assert sorted(request.answer["result"][0]["id"] for request in long) == [1, 2, 3, 4]
    assert scaled.answer["ok"]
    assert remote.ask("scale", 4)["ok"]

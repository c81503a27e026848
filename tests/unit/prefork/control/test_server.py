"""The control socket: its replies, and its protection of the master and other clients from bad clients."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forkserve.prefork.control.server import REQUESTS
from tests.unit.prefork.control.control_helpers import Client, Server, request, short_directory

Start = Callable[..., Server]


@pytest.fixture
def start() -> Iterator[Start]:
    servers: list[Server] = []
    with short_directory() as directory:

        def begin(**limits: float) -> Server:
            servers.append(Server(directory, **limits))
            return servers[-1]

        yield begin
        for server in servers:
            server.close()


def error(code: str, message: str) -> dict[str, object]:
    return {"v": 1, "id": None, "ok": False, "error": {"code": code, "message": message}, "result": None}


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


# Replies.


def test_a_request_gets_its_reply(start: Start) -> None:
    server = start()
    client = server.client(request("status", id={"a": [1]}))

    assert server.lines(client) == [{"v": 1, "id": {"a": [1]}, "ok": True, "error": None, "result": {"number": 1}}]
    assert server.executed == [("status", [], "all", 60.0)]
    assert not client.ended

    client.send(request("call", args=["flush", 1], to=2, timeout=5))
    answer = server.lines(client, 2)[1]
    assert server.executed[1] == ("call", ["flush", 1], 2, 5)
    assert answer["error"] == {"code": "failed", "message": "1 of 2 failed: worker 2: no such table"}
    assert [reply["status"] for reply in answer["result"]] == ["ok", "error"]


def test_replies_come_as_soon_as_they_are_ready(start: Start) -> None:
    server = start()
    client = server.client(request("reload", id=1) + b"\r\n\n" + request("status", id=2))

    assert [line["id"] for line in server.lines(client)] == [2]
    server.pending[0].resolve({"generation": 2})
    assert [line["id"] for line in server.lines(client, 2)] == [2, 1]


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("scale", "refused", "no port is free"),
        ("upgrade", "failed", "fault in the master: see its log"),
        ("commands", "failed", "the result cannot be sent: Object of type object is not JSON serializable"),
    ],
)
def test_a_failed_command_gets_an_error(start: Start, command: str, code: str, message: str) -> None:
    server = start()
    client = server.client(request(command) + request())

    assert server.lines(client, 2)[0] == error(code, message)
    assert client.lines[1]["ok"]


def test_large_requests_of_one_client_run_one_after_the_other(start: Start) -> None:
    """The running requests of a client are also limited in bytes, because parsed JSON takes much more memory than its text."""
    server = start()
    large = request("reload", args=[[]] * 200_000)
    small = server.client(request("reload"))
    client = server.client(large)
    server.until(lambda: len(server.pending) == 2)
    client.send(large + request())
    server.lines(server.client(request()))
    server.lines(server.client(request()))
    assert len(server.pending) == 2

    server.pending[1].resolve(None)
    server.until(lambda: len(server.pending) == 3)
    server.pending[2].resolve(None)
    assert [line["ok"] for line in server.lines(client, 3)] == [True] * 3
    server.pending[0].resolve(None)
    assert server.lines(small)[0]["ok"]


def test_a_half_closed_client_gets_its_replies(start: Start) -> None:
    server = start()
    client = server.client(request() * 3 + request("reload"), shut=True)
    server.until(lambda: server.pending and client.count == 3)
    assert not client.ended

    server.pending[0].resolve("done")

    assert server.to_end(client)[3]["result"] == "done"


def test_a_client_gets_progress_if_it_requests_it(start: Start) -> None:
    server = start()
    client = server.client(request("reload", id=1, progress=True))
    other = server.client(request("reload"))

    assert server.lines(client) == [{"v": 1, "id": 1, "progress": "at work"}]
    server.text = "nearly done"
    assert server.lines(client, 2)[1]["progress"] == "nearly done"
    server.pending[0].resolve(None)
    assert server.lines(client, 3)[2]["ok"]
    assert other.count == 0


def test_a_command_past_its_deadline_gets_a_timeout(start: Start) -> None:
    server = start(grace=0.0)
    client = server.client(request("reload", timeout=0.01))

    assert server.lines(client) == [error("timeout", "not done within 0.01 s; it goes on")]
    server.pending[0].resolve("too late")
    client.send(request())
    assert server.lines(client, 2)[1]["result"] == {"number": 2}


# Bad input: one error line, then the connection is closed.


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "a line that is not JSON"),
        (b"\xff\xfe\x00\n", "a line that is not JSON"),
        (b"[1]\n", "a line that is not a JSON object"),
        (b"[" * 100_000 + b"\n", "a line that is not JSON"),
        (
            b'{"v":1,"command":"status","id":' + b"[" * 200 + b"]" * 200 + b"}\n",
            "a line that is nested more than 200 levels deep",
        ),
        (b"x" * 3_000_000, "a line of more than 1048576 bytes"),
        (request()[:-1] + b" " * 1_100_000 + b"\n", "a line of more than 1048576 bytes"),
    ],
)
def test_garbage_gets_one_error_and_the_connection_is_closed(start: Start, data: bytes, message: str) -> None:
    server = start()
    bad, good = server.client(data), server.client(request("reload"))

    assert server.to_end(bad) == [error("usage", message)]
    server.until(lambda: server.pending)
    server.pending[0].resolve(None)
    assert server.lines(good)[0]["ok"]
    assert [one[0] for one in server.executed] == ["reload"]


def test_a_bad_request_does_not_close_the_connection(start: Start) -> None:
    server = start()
    client = server.client(b'{"v":2,"id":8}\n' + request(tmeout=1) + request("sttus") + request())

    lines = server.lines(client, 4)
    assert [line["error"] and line["error"]["code"] for line in lines] == ["usage", "usage", "unknown", None]
    assert [line["id"] for line in lines] == [8, None, None, None]


def test_an_incomplete_request_times_out(start: Start) -> None:
    server = start(patience=0.2)
    half, idle, waiting = server.client(request() + b'{"v":1,'), server.client(), server.client(request("reload"))

    assert server.to_end(half)[1:] == [error("timeout", "no complete request within 0.2 s")]
    assert server.to_end(idle) == [error("timeout", "no complete request within 0.2 s")]
    server.pending[0].resolve(None)
    assert server.lines(waiting)[0]["ok"]


def test_slow_single_bytes_time_out(start: Start) -> None:
    server = start(patience=0.2)
    client = server.client()

    def drip() -> bool:
        client.send(b" ")
        return client.ended

    server.until(drip)
    assert client.lines == [error("timeout", "no complete request within 0.2 s")]


def test_the_end_in_the_middle_of_a_line_is_an_error(start: Start) -> None:
    server = start()
    client = server.client(request() + request("reload")[:-1], shut=True)

    assert server.to_end(client)[1:] == [error("usage", "the end came in the middle of a line")]
    assert [one[0] for one in server.executed] == ["status"]


# Fairness.


def test_a_flood_of_requests_does_not_starve_other_clients(start: Start) -> None:
    server = start()
    flood = server.client(request() * 3_000)
    server.lines(flood, 100)
    before = len(server.executed)
    other = server.client(request("call"))
    server.until(lambda: other.count)

    assert [one[0] for one in server.executed[before:]].index("call") < 50
    most = 0
    while flood.count < 3_000:
        before = len(server.executed)
        server.turn(0.01)
        most = max(most, len(server.executed) - before)
    assert most == 1


def test_the_number_of_requests_in_a_turn_is_limited(start: Start) -> None:
    server = start()
    for _ in range(100):
        server.client(request() * 3)
    most = 0
    while len(server.executed) < 300:
        before = len(server.executed)
        server.turn(0.01)
        most = max(most, len(server.executed) - before)
    assert 1 < most <= REQUESTS


def test_requests_wait_while_many_run(start: Start) -> None:
    server = start(open=4)
    client = server.client(request("reload") * 10)
    server.until(lambda: len(server.pending) == 4)
    for _ in range(20):
        server.turn()
    assert len(server.pending) == 4

    for number in range(10):
        server.until(lambda number=number: len(server.pending) > number)
        server.pending[number].resolve(number)
    assert [line["result"] for line in server.lines(client, 10)] == list(range(10))


def test_a_client_that_never_reads_is_closed(start: Start) -> None:
    server = start(patience=0.2, unsent=1 << 20)
    client = server.client(request("stacks", args=[4 << 20]) * 4)
    client.reads = False
    server.until(lambda: server.connected == 1)
    server.until(lambda: server.connected == 0)

    assert len(server.executed) == 1  # no further request was read
    client.reads = True
    assert server.until(lambda: client.ended) is None
    assert client.received < 4 << 20


@pytest.mark.heavy
def test_a_client_that_reads_slowly_is_kept(start: Start) -> None:
    server = start(patience=1.5)  # much longer than the pauses of this client on a busy machine
    client = server.client(request("stacks", args=[4 << 20]))
    client.pace = 0.05
    began = time.monotonic()

    (answer,) = server.lines(client)
    assert len(answer["result"]) == 4 << 20
    assert time.monotonic() - began > 2 * 1.5


def test_a_client_with_too_many_unread_replies_is_closed(start: Start) -> None:
    server = start(unsent=1 << 20)
    client = server.client(request("reload") * 3)
    client.reads = False
    server.until(lambda: len(server.pending) == 3)
    for pending in server.pending:
        pending.resolve("x" * (3 << 20))

    assert server.connected == 0


def test_the_command_of_a_disconnected_client_continues(start: Start) -> None:
    server = start()
    client, other = server.client(request("reload")), server.client(request("reload"))
    server.until(lambda: len(server.pending) == 2)
    client.sock.close()
    server.clients.remove(client)
    server.until(lambda: server.connected == 1)

    for pending in server.pending:
        pending.resolve("done")
    assert server.lines(other)[0]["result"] == "done"


def test_ten_thousand_connections_do_not_disturb_a_client(start: Start) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(10_000, hard - 200)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = start(crowded=0.3)
    mine = server.client(request("reload"))
    server.until(lambda: server.pending)
    crowd: list[Client] = []
    while len(crowd) < wanted:
        try:
            crowd.append(Client(server.path))
        except BlockingIOError:  # the queue is full
            server.turn()
    server.until(lambda: server.connected <= 1)
    for client in crowd:
        client.move()

    assert {one["error"]["code"] for client in crowd for one in client.lines} == {"busy", "timeout"}
    assert {client.count for client in crowd if client.ended} == {1}
    server.pending[0].resolve("done")
    assert server.lines(mine)[0]["result"] == "done"
    for client in crowd:
        client.sock.close()


def test_accepting_pauses_without_a_free_descriptor(start: Start) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    server = start()
    client = server.client(request())
    resource.setrlimit(resource.RLIMIT_NOFILE, (client.sock.fileno() + 1, hard))
    try:
        before = time.monotonic()
        server.turn(0.1)  # accepting fails
        server.turn(0.3)  # and is not retried at once
        assert time.monotonic() - before > 0.3
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert server.lines(client)[0]["ok"]


@pytest.mark.parametrize("other", [True, False])
def test_another_user_is_refused(start: Start, other: bool) -> None:  # noqa: FBT001 - a parameter
    server = start()
    os.chmod(Path(server.path).parent, 0o755)
    os.chmod(server.path, 0o777)
    other = other and os.geteuid() == 0  # only root can be another user
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.shutdown(socket.SHUT_WR);"
        "print(s.makefile().read(), end='', flush=True)"
    )
    arguments = ["/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable, "-c", code, server.path]
    with subprocess.Popen(arguments, user=65534 if other else None, stdout=subprocess.PIPE, text=True, cwd="/") as process:
        server.until(lambda: process.poll() is not None)
        assert process.stdout is not None
        output = process.stdout.read()
    assert ('"code":"refused","message":"only root and the user 0 may steer this server"' in output) is other
    assert bool(output) is other
    server.until(lambda: server.connected == 0)


# Closing.


def test_clients_get_a_last_reply_before_the_connection_is_closed(start: Start) -> None:
    server = start()
    stop = server.client(request("stop"))
    busy = server.client(request("reload"))
    server.until(lambda: len(server.pending) == 2)
    server.pending[0].resolve(None)
    server.control.close()

    assert server.to_end(stop) == [{"v": 1, "id": None, "ok": True, "error": None, "result": None}]
    assert server.to_end(busy) == [error("failed", "the server has stopped")]
    assert os.listdir(Path(server.path).parent) == []
    server.control.close()


def test_closing_waits_only_a_moment_for_a_client_that_does_not_read(start: Start) -> None:
    server = start()
    client = server.client(request("stacks", args=[4 << 20]))
    client.reads = False
    server.until(lambda: server.executed)
    began = time.monotonic()
    server.control.close()

    assert 0.9 < time.monotonic() - began < 20


def test_a_child_closes_its_copies_of_all_descriptors(start: Start) -> None:
    server = start()
    client = server.client(request("reload"))
    server.until(lambda: server.pending)
    file = server.control._endpoint
    assert file is not None
    descriptors = [file.sock.fileno(), file._lock._descriptor, *server.control._sessions]
    child = os.fork()
    if child == 0:
        server.poller.close()
        server.control.close_in_child()
        os._exit(sum(is_open(descriptor) for descriptor in descriptors))
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert all(is_open(descriptor) for descriptor in descriptors)
    server.pending[0].resolve("done")
    assert server.lines(client)[0]["result"] == "done"

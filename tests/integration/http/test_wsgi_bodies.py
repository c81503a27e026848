"""Request bodies of WSGI: in memory while they are small, in a file beyond that; and the memory is free again after every ending."""

import ast
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from forkserve.http.app.wsgi import BODY_IN_MEMORY
from forkserve.http.framing.outgoing import PIECE
from tests.integration.client import Client
from tests.integration.command import eventually
from tests.integration.http.harness import Server, serving

APP = "tests.integration.http.wsgi_apps:application"
LIMIT = 2 * PIECE
"""Bytes of bodies that the server keeps in memory."""
FULL = LIMIT + 28 - 70_000
"""Bytes that reach the limit behind 70,000: no read of a part of them does."""
MEMORY, DISK = "BytesIO", "BufferedRandom"


@pytest.fixture(scope="module", params=["0", "4"], ids=["inline", "threads"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server inline, one with threads."""
    directory = Path(os.path.relpath(tmp_path_factory.mktemp("s")))
    with serving(APP, directory, faults=True, threads=request.param, limit_buffered=LIMIT) as server:
        yield server


def head(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: a", *lines, "", ""]).encode()


def sized(path: str, size: int) -> bytes:
    return head(path, f"Content-Length: {size}")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def asked(client: Client, expression: str, body: bytes, *pieces: bytes) -> Any:
    """The value of an expression about ``wsgi.input``; the body is sent with the head, or in pieces."""
    path = "/input?it=" + quote(expression)
    if pieces:
        client.send_apart([head(path, "Transfer-Encoding: chunked"), *pieces])
    else:
        client.send(sized(path, len(body)) + body)
    given, length = ast.literal_eval(client.answer().body.decode())
    assert length == str(len(body))
    return given


def kept(client: Client, size: int) -> str:
    """Where the server keeps a body of this size."""
    body = bytes(range(251)) * (size // 251 + 1)
    kind, content = asked(client, "(type(input).__name__, input.read())", body[:size])
    assert content == body[:size]
    return str(kind)


BODY = bytes(range(256)) * 4
SPLITS: dict[str, Callable[[bytes], list[bytes]]] = {
    "with the head": lambda data: [data],
    "behind the head": lambda data: [data[:-1024], data[-1024:]],
    "begun with the head": lambda data: [data[:-1000], data[-1000:]],
    "in pieces": lambda data: [data[:-1024], *(data[-1024:][at : at + 100] for at in range(0, 1024, 100))],
    "in two bytes and the rest": lambda data: [data[:-1024], data[-1024:-1023], data[-1023:-1022], data[-1022:]],
}


@pytest.mark.parametrize("split", SPLITS)
def test_a_small_body_is_kept_in_memory(server: Server, split: str) -> None:
    """However it comes, it is whole, and `read` begins at its start; the connection goes on."""
    path = "/input?it=" + quote("(type(input).__name__, input.tell(), input.read())")
    with server.connect() as client:
        for _ in range(2):
            client.send_apart(SPLITS[split](sized(path, len(BODY)) + BODY))
            given, length = ast.literal_eval(client.answer().body.decode())
            assert (given, length) == ((MEMORY, 0, BODY), str(len(BODY)))


def test_a_small_chunked_body_is_kept_in_memory(server: Server) -> None:
    """Its chunks, and parts of them, are joined."""
    stream = chunk(BODY[:10]) + chunk(BODY[10:]) + b"0\r\n\r\n"
    with server.connect() as client:
        for cuts in ([], [3], [3, 12, 14, 500], range(0, len(stream), 50)):
            ends = [0, *cuts, len(stream)]
            pieces = [stream[start:end] for start, end in pairwise(ends) if start < end]
            assert asked(client, "(type(input).__name__, input.read())", BODY, *pieces) == (MEMORY, BODY)


@pytest.mark.parametrize("threads", ["0", "4"])
def test_a_body_that_grows_is_moved_to_a_file(tmp_path: Path, threads: str) -> None:
    """The limit is the number of bytes, whether they come in a few pieces or in many."""
    with serving(APP, Path(os.path.relpath(tmp_path)), threads=threads) as server, server.connect() as client:
        for size, place in ((PIECE, MEMORY), (PIECE + 1, MEMORY), (BODY_IN_MEMORY, MEMORY), (BODY_IN_MEMORY + 1, DISK)):
            assert kept(client, size) == place
            body = (bytes(range(255)) * (size // 255 + 1))[:size]
            pieces = [chunk(body[start : start + 50_000]) for start in range(0, size, 50_000)]
            assert asked(client, "(type(input).__name__, input.read())", body, *pieces, b"0\r\n\r\n") == (place, body)


USES = {
    "[input.tell(), input.read(3), input.tell(), input.seek(1), input.read(2), input.tell()]": [0, b"012", 3, 1, b"12", 3],
    "[input.seek(-4, 2) > 0, input.read(), input.read()]": [True, b"78\nz", b""],
    "[input.seek(0, 2) > 0, input.read(1), input.readline(), list(input), input.seek(0), input.readline()]": [
        True, b"", b"", [], 0, b"012345678\n",
    ],
    "[next(iter(input)), input.readlines(1), input.tell()]": [b"012345678\n", [b"012345678\n"], 20],
    "[input.readable(), input.seekable(), input.closed]": [True, True, False],
    "[input.readinto(taken := bytearray(4)), bytes(taken)]": [4, b"0123"],
    "[sum(map(len, input)) > 1000, [line for line in input]]": [True, []],
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("lines", [200, BODY_IN_MEMORY // 10 + 1], ids=["memory", "disk"])
def test_an_input_in_memory_and_one_in_a_file_can_be_used_alike(server: Server, use: str, lines: int) -> None:
    """Applications read, iterate and seek."""
    with server.connect() as client:
        assert asked(client, use, b"012345678\n" * lines + b"z") == USES[use]


@pytest.mark.parametrize("path", ["/keep", "/keep?raise=1"])
@pytest.mark.parametrize("size", [1, BODY_IN_MEMORY + 1], ids=["memory", "disk"])
def test_the_input_is_closed_after_the_call(server: Server, path: str, size: int) -> None:
    """It is closed also if the application raises an exception."""
    with server.connect() as client:
        client.send(sized(path, size) + b"x" * size)
        assert client.answer().status == (500 if "raise" in path else 200)
    eventually(lambda: server.json("/kept") == [True], "the input is open")


def answered(client: Client) -> None:
    client.send(sized("/unread", 70_000) + bytes(70_000))
    assert client.answer().body == b"unread"


def raised(client: Client) -> None:
    client.send(sized("/raise?it=intended", 70_000) + bytes(70_000))
    assert client.answer().status == 500


def gone(client: Client) -> None:
    client.send_apart([sized("/order?it=never", 70_001) + bytes(70_000)])
    client.reset()


def malformed(client: Client) -> None:
    client.send_apart([head("/order?it=never", "Transfer-Encoding: chunked") + chunk(bytes(70_000)) + b"malformed\r\n"])
    assert client.answer().status == 400


def cut_short(client: Client) -> None:
    client.send_apart([sized("/order?it=never", 70_001) + bytes(70_000)])
    client.end()
    assert client.answer().status == 400


def moved_to_disk(client: Client) -> None:
    client.send(sized("/unread", BODY_IN_MEMORY + 1) + bytes(BODY_IN_MEMORY + 1))
    assert client.answer().body == b"unread"


def fills_the_memory(server: Server, client: Client) -> bool:
    """Whether another body goes to a file while one waits that takes all of the memory. A thread may yet have to return some."""
    with server.connect() as waiting:
        waiting.send_apart([sized("/unread", LIMIT + 29) + bytes(70_000), bytes(FULL)])
        assert kept(client, PIECE) == MEMORY  # so small a body is not counted
        filled = kept(client, 70_000) == DISK
        waiting.send(b"z")
        assert waiting.answer().body == b"unread"
    return filled


@pytest.mark.parametrize("ending", [answered, raised, gone, malformed, cut_short, moved_to_disk])
def test_the_memory_of_a_body_is_counted_until_its_end(server: Server, ending: Callable[[Client], None]) -> None:
    """Bodies that wait fill the memory, and another goes to a file; those that have ended do not count, and do not count twice."""
    for _ in range(5):
        with server.connect() as client:
            ending(client)
    with server.connect() as client:
        eventually(lambda: kept(client, 70_000) == MEMORY, "the memory is not free again")
        eventually(lambda: fills_the_memory(server, client), "the memory is never full")
        eventually(lambda: kept(client, 70_000) == MEMORY, "the memory is not free again")


@pytest.mark.parametrize(("of", "size"), [("memory", 1), ("memory", 70_000), ("disk", BODY_IN_MEMORY + 1)])
def test_an_input_that_cannot_be_closed_stops_no_other_request(server: Server, of: str, size: int) -> None:
    """More such requests than there are threads."""
    with server.connect() as client, server.connect() as other:
        for _ in range(6):
            client.send(sized(f"/view?of={of}", size) + bytes(size))
            assert client.answer().body == b"kept"
            other.send(sized("/unread", 1) + b"a")
            assert other.answer().body == b"unread"
        eventually(lambda: kept(client, 70_000) == MEMORY, "the memory is not free again")
        client.send(sized("/view?of=nothing", 1) + b"a")
        assert client.answer().body == b"kept"

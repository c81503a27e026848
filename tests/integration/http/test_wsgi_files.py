# one case, one line
"""Files in WSGI's answers: a descriptor is no proof of what reading gives, and a length on disk is no promise.

Where the server might take the one for the other, and what is tried here:

- `FileWrapper.regular`, which says what the system may send: all that decompresses, decrypts, decodes or counts otherwise than the
  descriptor below it, one layer up or down (`file_apps.READ`), and a subclass of the wrapper;
- the length that is announced where a file is read because of TLS or ``--no-sendfile`` (`file_to_send`), inline and in threads;
- the position from which a file is sent: partly read, changed and not flushed (`file_apps.AS_THEY_ARE`);
- `SendFile`, and reading instead: files that grow or shrink on their way;
- what Flask and Django make of the wrapper: ranges, conditional requests, lengths of their own, ``close``;
- ASGI, which has no way to name a file: ``http.response.pathsend`` and ``http.response.zerocopysend`` are not offered.
"""

import json
import os
import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from tests.integration.client import Answer, Client
from tests.integration.command import eventually
from tests.integration.http import file_apps
from tests.integration.http.file_apps import AS_THEY_ARE, CONTENT, NOT_READ, READ
from tests.integration.http.harness import Server, serving

WAYS = {
    "inline": {},
    "threads": {"threads": 2},
    "read": {"sendfile": "no"},
    "read in threads": {"sendfile": "no", "threads": 2},
    "TLS": {},
    "TLS in threads": {"threads": 2},
}
BIG = 30 << 20
"""More than sockets take."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost, with its key beside it."""
    path = tmp_path_factory.mktemp("tls") / "cert"
    line = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {path}.key -out {path}"
    subprocess.run([*line.split(), "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    return path


class Way:
    """A server, and how to talk to it."""

    def __init__(self, server: Server, tls: ssl.SSLContext | None) -> None:
        self.server, self._tls = server, tls
        self.path = Path()  # of the file of this test

    def connect(self, **options: int) -> Client:
        """A client."""
        return self.server.connect(tls=self._tls, **options)

    def ask(self, what: str, *lines: str, method: str = "GET", version: str = "1.1", **query: object) -> Answer:
        """Ask for a file on a connection of its own."""
        with self.connect() as client:
            send(client, what, *lines, "Connection: close", method=method, version=version, **query)
            answer = client.answer(method)
            assert client.rest() == b""
            return answer

    def events(self, *expected: str) -> None:
        """Wait until so much has happened to the file of this test; nothing else may have. Others may be closed late."""
        seen: list[str] = []

        def enough() -> bool:
            happened = (one.rsplit(" ", 1) for one in json.loads(self.ask("-/events").body))
            seen.extend(what for what, path in happened if path == str(self.path))
            return len(seen) >= len(expected)

        eventually(enough, f"only this has happened: {seen}")
        assert seen == list(expected)


def send(client: Client, what: str, *lines: str, method: str = "GET", version: str = "1.1", **query: object) -> None:
    """Send a request."""
    target = f"/{quote(what)}?{urlencode(query)}"
    client.send("\r\n".join((f"{method} {target} HTTP/{version}", "Host: a", *lines, "", "")).encode())


@pytest.fixture(
    scope="module",
    params=[
        "inline",
        "threads",
        "read",
        *(pytest.param(one, marks=pytest.mark.heavy) for one in ("read in threads", "TLS", "TLS in threads")),
    ],
)
def way(request: pytest.FixtureRequest, certificate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    """A server for each way that a file can take."""
    app = "tests.integration.http.file_apps:application"
    options = {"faults": True, **WAYS[request.param]}
    if "TLS" in request.param:
        with Server(app, "127.0.0.1:0", certfile=certificate, keyfile=f"{certificate}.key", **options) as server:
            yield Way(server, ssl.create_default_context(cafile=str(certificate)))
    else:
        with serving(app, Path(os.path.relpath(tmp_path_factory.mktemp("s"))), **options) as server:
            yield Way(server, None)


@pytest.fixture
def path(way: Way, tmp_path: Path) -> Path:
    """A file."""
    way.path = path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("what", AS_THEY_ARE)
def test_files_as_they_are(way: Way, what: str, path: Path) -> None:
    """All of it, from where it stands, with its length."""
    content = AS_THEY_ARE[what][1]
    answer = way.ask(what, path=path)

    assert (answer.status, answer["content-length"], answer.body == content) == (200, str(len(content)), True)
    way.events("closed")


@pytest.mark.parametrize("what", READ)
def test_files_that_must_be_read(way: Way, what: str, path: Path) -> None:
    """What reading gives, however the descriptor looks; and no length, which only reading to the end would tell."""
    content = READ[what][1]
    content = content.read_bytes() if isinstance(content, Path) else content
    answer = way.ask(what, path=path)

    assert (answer.status, answer.chunked, answer.whole, answer.body == content) == (200, content != b"", True, True)


@pytest.mark.parametrize("what", NOT_READ)
def test_files_that_cannot_be_read(way: Way, what: str, path: Path) -> None:
    """Nothing of them is sent, and the log says why."""
    said = len(way.server.log)

    assert (way.ask(what, path=path).status, path.read_bytes() == CONTENT) == (500, True)
    eventually(lambda: re.search("the body must be bytes, not str|closed file|UnsupportedOperation", way.server.log[said:]))


def test_a_wrapper_that_decrypts(way: Way, path: Path) -> None:
    """A subclass of the server's own."""
    path.write_bytes(file_apps.hidden(CONTENT))

    assert way.ask("buffered", path=path, wrapper="decrypting").body == CONTENT
    way.events("closed")


@pytest.mark.parametrize("size", [1, 7, 65536, 10_000_000, 0, -1])
def test_blocks_of_any_size(way: Way, path: Path, size: int) -> None:
    """A size that is none is the server's own."""
    path.write_bytes(CONTENT[:500])
    for what in ("buffered", "gzip") if size > 1 else ("buffered",):
        assert way.ask(what, path=path, size=size).body == (CONTENT if what == "gzip" else CONTENT[:500])


@pytest.mark.parametrize("what", ["buffered", "gzip", "pipe"])
def test_no_body(way: Way, path: Path, what: str) -> None:
    """HEAD, and a status without a body; a length only where it is known."""
    answer = way.ask(what, method="HEAD", path=path)
    assert (answer.body, answer.get("content-length")) == (b"", [str(len(CONTENT))] if what == "buffered" else [])
    answer = way.ask(what, path=path, status="304 Not Modified")
    assert (answer.body, answer.get("content-length")) == (b"", [])


@pytest.mark.parametrize("what", ["buffered", "gzip", "in /proc"])
def test_http_1_0(way: Way, path: Path, what: str) -> None:
    """Without chunks, the end of the connection is the end of what has no length."""
    answer = way.ask(what, version="1.0", path=path)

    assert (answer.chunked, bool(answer.get("content-length"))) == (False, what == "buffered")
    assert answer.body == (Path("/proc/version").read_bytes() if what == "in /proc" else CONTENT)


def test_a_length_that_the_application_knows(way: Way, path: Path) -> None:
    """It stands, for a file that is read too; and the connection lives on."""
    with way.connect() as client:
        for what in ("gzip", "buffered", "gzip"):
            send(client, what, path=path, length=len(CONTENT))
            answer = client.answer()
            assert (answer["content-length"], answer.body) == (str(len(CONTENT)), CONTENT)
    way.events(*["closed"] * 3)


def test_a_file_that_grows_on_its_way(way: Way, path: Path) -> None:
    """Its length is what it was; what is new is for the next request, on the same connection. Nobody is at fault."""
    said = len(way.server.log)
    os.truncate(path, BIG)
    with way.connect(receive_buffer=4096) as client:
        send(client, "buffered", path=path)
        answer = client.head()
        with path.open("ab") as file:
            file.write(b"more")
        assert (answer["content-length"], len(client.exactly(BIG))) == (str(BIG), BIG)
        os.truncate(path, 5)
        send(client, "buffered", path=path)
        assert client.answer().body == CONTENT[:5]
    way.events("closed", "closed")
    assert "ERROR" not in way.server.log[said:]


def test_a_file_that_shrinks_on_its_way(way: Way, path: Path) -> None:
    """Nothing can make it whole: the connection ends, and the log says so."""
    os.truncate(path, BIG)
    with way.connect(receive_buffer=4096) as client:
        send(client, "buffered", path=path)
        answer = client.head()
        os.truncate(path, 10_000_000)
        rest = client.exactly(BIG)
        assert (answer["content-length"], len(rest) < BIG, rest[:8]) == (str(BIG), True, CONTENT[:8])
    way.server.wait_for_log("shorter than its Content-Length")
    way.events("closed")


# What frameworks make of it.

FRAMED = [
    "buffered", "Django's", "temporary, with a name", "partly read", "gzip", "lzma", "decrypted", "decrypted by a wrapper", "spooled in memory", "bytes",
]  # fmt: skip


@pytest.mark.parametrize("what", FRAMED)
@pytest.mark.parametrize("framework", ["flask", "django"])
def test_frameworks(way: Way, framework: str, what: str, path: Path) -> None:
    """Flask's send_file and Django's FileResponse with the very same files."""
    content = (AS_THEY_ARE | READ)[what][1]
    answer = way.ask(f"{framework}/{what}", path=path)

    assert (answer.status, answer.whole, answer.body == content) == (200, True, True)
    assert answer.get("content-length") in ([], [str(len(content))])


def test_flask_with_a_path(way: Way, path: Path) -> None:
    """Whole, in part, not modified, and HEAD."""
    whole = way.ask("flask/path", path=path)
    assert (whole["content-length"], whole.body) == (str(len(CONTENT)), CONTENT)
    for given, start, end in (("5-9", 5, 10), ("100000-", 100_000, len(CONTENT)), ("-7", len(CONTENT) - 7, len(CONTENT))):
        part = way.ask("flask/path", f"Range: bytes={given}", path=path)
        assert (part.status, part["content-length"], part.body) == (206, str(end - start), CONTENT[start:end])
    assert way.ask("flask/path", "Range: bytes=999999-", path=path).status == 416
    assert way.ask("flask/path", f"If-None-Match: {whole['etag']}", path=path).status == 304
    head = way.ask("flask/path", method="HEAD", path=path)
    assert (head["content-length"], head.body) == (str(len(CONTENT)), b"")


@pytest.mark.parametrize("what", ["gzip", "decrypted, buffered", "bytes", "pipe"])
def test_flask_with_ranges_of_what_is_read(way: Way, what: str, path: Path) -> None:
    """Where it can be sought in, and where not."""
    view = "flask" if what == "bytes" else "flask-conditional"  # there Flask knows the length
    part = way.ask(f"{view}/{what}", "Range: bytes=9000-9009", path=path)

    assert (part.status, part["content-length"], part.body) == (206, "10", CONTENT[9000:9010])


def test_a_range_at_the_end_of_a_large_file_reads_only_that(way: Way, path: Path) -> None:
    """Its beginning, which is a hole of 128 GiB, is sought over."""
    os.truncate(path, 1 << 37)
    with path.open("ab") as file:
        file.write(b"the end")

    assert way.ask("flask/path", "Range: bytes=-7", path=path).body == b"the end"

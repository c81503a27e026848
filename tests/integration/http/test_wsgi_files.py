# one case, one line
"""Files in WSGI responses: the descriptor may give other bytes than ``read``, and the length on disk may change.

Where the server could confuse them, and what is tested here:

- `FileWrapper.regular`, which decides whether the system may send the file: files that decompress, decrypt, decode or count unlike
  descriptor below it, one layer up or down (`file_apps.READ`), and a subclass of the wrapper;
- the announced length of a file that is read because of TLS or ``--no-sendfile`` (`file_to_send`), inline and in threads;
- the start position of a file: partly read, or changed and not flushed (`file_apps.AS_THEY_ARE`);
- `SendFile`, and reading instead: files that grow or shrink while they are sent;
- Flask and Django on top of the wrapper: ranges, conditional requests, their own lengths, ``close``;
- ASGI cannot name a file: ``http.response.pathsend`` and ``http.response.zerocopysend`` are not offered.
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
"""More than the socket buffers hold."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost, with its key beside it."""
    path = tmp_path_factory.mktemp("tls") / "cert"
    line = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {path}.key -out {path}"
    subprocess.run([*line.split(), "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    return path


class Way:
    """A server, and the means to connect to it."""

    def __init__(self, server: Server, tls: ssl.SSLContext | None) -> None:
        self.server, self._tls = server, tls
        self.path = Path()  # the file of the current test

    def connect(self, **options: int) -> Client:
        """A new client."""
        return self.server.connect(tls=self._tls, **options)

    def ask(self, what: str, *lines: str, method: str = "GET", version: str = "1.1", **query: object) -> Answer:
        """Request a file on a new connection."""
        with self.connect() as client:
            send(client, what, *lines, "Connection: close", method=method, version=version, **query)
            answer = client.answer(method)
            assert client.rest() == b""
            return answer

    def events(self, *expected: str) -> None:
        """Wait for exactly these events of the file of this test; other files may be closed later."""
        seen: list[str] = []

        def enough() -> bool:
            happened = (one.rsplit(" ", 1) for one in json.loads(self.ask("-/events").body))
            seen.extend(what for what, path in happened if path == str(self.path))
            return len(seen) >= len(expected)

        eventually(enough, f"too few events: {seen}")
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
    """A server for each way to send a file."""
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
def test_a_plain_file_is_sent_with_its_length(way: Way, what: str, path: Path) -> None:
    """The file is sent from its current position."""
    content = AS_THEY_ARE[what][1]
    answer = way.ask(what, path=path)

    assert (answer.status, answer["content-length"], answer.body == content) == (200, str(len(content)), True)
    way.events("closed")


@pytest.mark.parametrize("what", READ)
def test_a_file_that_differs_from_its_descriptor_is_read(way: Way, what: str, path: Path) -> None:
    """The response has the bytes that ``read`` returns, whatever the descriptor holds, and no length, since that is not known."""
    content = READ[what][1]
    content = content.read_bytes() if isinstance(content, Path) else content
    answer = way.ask(what, path=path)

    assert (answer.status, answer.chunked, answer.whole, answer.body == content) == (200, content != b"", True, True)


@pytest.mark.parametrize("what", NOT_READ)
def test_an_unreadable_file_is_a_500(way: Way, what: str, path: Path) -> None:
    """Nothing of the file is sent, and the log names the reason."""
    log_start = len(way.server.log)

    assert (way.ask(what, path=path).status, path.read_bytes() == CONTENT) == (500, True)
    eventually(lambda: re.search("the body must be bytes, not str|closed file|UnsupportedOperation", way.server.log[log_start:]))


def test_a_subclass_of_the_wrapper_may_change_the_bytes(way: Way, path: Path) -> None:
    """The pieces of a subclass of the server's wrapper are sent."""
    path.write_bytes(file_apps.hidden(CONTENT))

    assert way.ask("buffered", path=path, wrapper="decrypting").body == CONTENT
    way.events("closed")


@pytest.mark.parametrize("size", [1, 7, 65536, 10_000_000, 0, -1])
def test_any_block_size_is_accepted(way: Way, path: Path, size: int) -> None:
    """An invalid size is replaced by the default."""
    path.write_bytes(CONTENT[:500])
    for what in ("buffered", "gzip") if size > 1 else ("buffered",):
        assert way.ask(what, path=path, size=size).body == (CONTENT if what == "gzip" else CONTENT[:500])


@pytest.mark.parametrize("what", ["buffered", "gzip", "pipe"])
def test_a_response_without_body_has_a_length_only_if_known(way: Way, path: Path, what: str) -> None:
    """HEAD, and a status without a body."""
    answer = way.ask(what, method="HEAD", path=path)
    assert (answer.body, answer.get("content-length")) == (b"", [str(len(CONTENT))] if what == "buffered" else [])
    answer = way.ask(what, path=path, status="304 Not Modified")
    assert (answer.body, answer.get("content-length")) == (b"", [])


@pytest.mark.parametrize("what", ["buffered", "gzip", "in /proc"])
def test_http_1_0_ends_a_body_of_unknown_length_with_the_connection(way: Way, path: Path, what: str) -> None:
    """Without chunks, the end of the connection ends the body."""
    answer = way.ask(what, version="1.0", path=path)

    assert (answer.chunked, bool(answer.get("content-length"))) == (False, what == "buffered")
    assert answer.body == (Path("/proc/version").read_bytes() if what == "in /proc" else CONTENT)


def test_a_content_length_from_the_application_is_kept(way: Way, path: Path) -> None:
    """The length is kept also for a file that must be read, and the connection stays open."""
    with way.connect() as client:
        for what in ("gzip", "buffered", "gzip"):
            send(client, what, path=path, length=len(CONTENT))
            answer = client.answer()
            assert (answer["content-length"], answer.body) == (str(len(CONTENT)), CONTENT)
    way.events(*["closed"] * 3)


def test_a_growing_file_is_sent_with_its_first_length(way: Way, path: Path) -> None:
    """Bytes added while the file is sent are part of the next response only; no error is logged."""
    log_start = len(way.server.log)
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
    assert "ERROR" not in way.server.log[log_start:]


def test_a_shrinking_file_truncates_its_response(way: Way, path: Path) -> None:
    """The response cannot become whole: the connection closes, and the error is logged."""
    os.truncate(path, BIG)
    with way.connect(receive_buffer=4096) as client:
        send(client, "buffered", path=path)
        answer = client.head()
        os.truncate(path, 10_000_000)
        rest = client.exactly(BIG)
        assert (answer["content-length"], len(rest) < BIG, rest[:8]) == (str(BIG), True, CONTENT[:8])
    way.server.wait_for_log("shorter than its Content-Length")
    way.events("closed")


# Frameworks on top of the wrapper.

FRAMED = [
    "buffered", "Django's", "temporary, with a name", "partly read", "gzip", "lzma", "decrypted", "decrypted by a wrapper", "spooled in memory", "bytes",
]  # fmt: skip


@pytest.mark.parametrize("what", FRAMED)
@pytest.mark.parametrize("framework", ["flask", "django"])
def test_flask_and_django_send_the_same_bytes(way: Way, framework: str, what: str, path: Path) -> None:
    """Flask's send_file and Django's FileResponse return the same files."""
    content = (AS_THEY_ARE | READ)[what][1]
    answer = way.ask(f"{framework}/{what}", path=path)

    assert (answer.status, answer.whole, answer.body == content) == (200, True, True)
    assert answer.get("content-length") in ([], [str(len(content))])


def test_flask_serves_ranges_and_conditional_requests(way: Way, path: Path) -> None:
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
def test_flask_serves_ranges_of_files_that_must_be_read(way: Way, what: str, path: Path) -> None:
    """The range is right for seekable and for other files."""
    view = "flask" if what == "bytes" else "flask-conditional"  # Flask knows the length
    part = way.ask(f"{view}/{what}", "Range: bytes=9000-9009", path=path)

    assert (part.status, part["content-length"], part.body) == (206, "10", CONTENT[9000:9010])


def test_a_range_at_the_end_of_a_large_file_reads_only_that(way: Way, path: Path) -> None:
    """The beginning, a hole of 128 GiB, is skipped by seeking."""
    os.truncate(path, 1 << 37)
    with path.open("ab") as file:
        file.write(b"the end")

    assert way.ask("flask/path", "Range: bytes=-7", path=path).body == b"the end"

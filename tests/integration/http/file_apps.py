# ruff: noqa: SIM115  # an application that returns a file leaves it open
"""WSGI applications that respond with files: plain files, and files whose ``read`` gives other bytes than the descriptor.

The path names the kind of file; ``?path=`` is a file with `CONTENT`. ``/-/events`` returns the recorded events and clears them.
"""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import mmap
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import django.conf
import flask
from django.core.files import File
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpRequest
from django.urls import path as route

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]

CONTENT = b"".join(b"%07d\n" % number for number in range(20_000))
"""More than one block."""
EVENTS: list[str] = []


def hidden(data: bytes) -> bytes:
    """Encrypt or decrypt."""
    return bytes(byte ^ 0x55 for byte in data)


class Decrypted(io.FileIO):
    """A file that decrypts its bytes in ``read``."""

    def read(self, size: int | None = -1) -> bytes:
        return hidden(super().read(size))

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        buffer[:count] = hidden(bytes(buffer[:count]))
        return count


class BufferedDecrypted(io.BufferedReader):
    """The same in the buffered layer."""

    def read(self, size: int | None = -1) -> bytes:
        return hidden(super().read(size))


class Passing:
    """Forwards everything to a file, but has its own ``read``."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int) -> bytes:
        return hidden(self._file.read(size))


class Lending:
    """Forwards everything to a file, including ``read``."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def encrypted(path: Path) -> Path:
    beside = path.with_suffix(".encrypted")
    beside.write_bytes(hidden(CONTENT))
    return beside


def compressed(module: Any, path: Path) -> Path:
    beside = path.with_suffix(f".{module.__name__}")
    beside.write_bytes(module.compress(CONTENT))
    return beside


def replaced(file: Any, name: str, method: Callable[..., Any]) -> Any:
    setattr(file, name, method)
    return file


def decrypting_read(file: Any) -> Any:
    read = file.read
    return replaced(file, "read", lambda size: hidden(read(size)))


def decrypting_raw(file: Any) -> Any:
    readinto = file.raw.readinto

    def decrypt(buffer: Any) -> int:
        count: int = readinto(buffer)
        buffer[:count] = hidden(bytes(buffer[:count]))
        return count

    file.raw.readinto = decrypt
    return file


def partly_read(file: Any, count: int) -> Any:
    assert file.read(count) == CONTENT[:count]
    return file


def written(file: Any, content: bytes = CONTENT) -> Any:
    """A temporary file; some of its bytes may still be in a buffer."""
    file.write(content)
    file.seek(0)
    return file


def changed(path: Path) -> Any:
    """A file that has grown; the new bytes may still be in a buffer."""
    file = path.open("r+b")
    file.seek(0, os.SEEK_END)
    file.write(b"more")
    file.seek(50)
    return file


def half_written(path: Path) -> Any:
    file = path.open("r+b")
    file.write(b"changed")
    return file


def pipe() -> Any:
    reading, writing = os.pipe()
    with open(writing, "wb", buffering=0) as end:
        end.write(CONTENT[:10_000])  # fits into the pipe
    return open(reading, "rb")


def mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def zipped(path: Path) -> Any:
    beside = path.with_suffix(".zip")
    with zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("name", CONTENT)
    with zipfile.ZipFile(beside) as archive:
        return archive.open("name")  # the member keeps the archive open until it is closed


def tarred(path: Path) -> Any:
    beside = path.with_suffix(".tar")
    with tarfile.open(beside, "w") as archive:
        archive.add(path, "name")
    archive = tarfile.open(beside)
    file: Any = archive.extractfile("name")
    close = file.close
    return replaced(file, "close", lambda: (close(), archive.close()))


def sparse(path: Path) -> Any:
    beside = path.with_suffix(".sparse")
    with beside.open("wb") as file:
        file.truncate(1 << 20)
    return beside.open("rb")


def empty(path: Path) -> Any:
    beside = path.with_suffix(".empty")
    beside.touch()
    return beside.open("rb")


def deleted(path: Path) -> Any:
    beside = path.with_suffix(".deleted")
    beside.write_bytes(CONTENT)
    file = beside.open("rb")
    beside.unlink()
    return file


def closed(file: Any) -> Any:
    file.close()
    return file


AS_THEY_ARE: dict[str, tuple[Callable[[Path], Any], bytes]] = {
    "buffered": (lambda path: path.open("rb"), CONTENT),
    "unbuffered": (lambda path: path.open("rb", buffering=0), CONTENT),
    "to be written too": (lambda path: path.open("r+b"), CONTENT),
    "written to": (changed, CONTENT[50:] + b"more"),
    "written to, and not flushed": (half_written, CONTENT[7:]),
    "partly read": (lambda path: partly_read(path.open("rb"), 11), CONTENT[11:]),
    "partly read, unbuffered": (lambda path: partly_read(path.open("rb", buffering=0), 11), CONTENT[11:]),
    "temporary": (lambda _: written(tempfile.TemporaryFile()), CONTENT),
    "temporary, with a name": (lambda _: written(tempfile.NamedTemporaryFile()), CONTENT),
    "lent": (lambda path: Lending(path.open("rb")), CONTENT),
    "Django's": (lambda path: File(path.open("rb")), CONTENT),
    "deleted": (deleted, CONTENT),
    "in memory": (lambda _: written(open(os.memfd_create("x"), "r+b")), CONTENT),
    "sparse": (sparse, bytes(1 << 20)),
}
"""Files whose descriptor gives the bytes of ``read``: they have a length, and the system may send them."""

READ: dict[str, tuple[Callable[[Path], Any], bytes | Path]] = {
    "gzip": (lambda path: gzip.open(compressed(gzip, path)), CONTENT),
    "bz2": (lambda path: bz2.open(compressed(bz2, path)), CONTENT),
    "lzma": (lambda path: lzma.open(compressed(lzma, path)), CONTENT),
    "gzip, partly read": (lambda path: partly_read(gzip.open(compressed(gzip, path)), 11), CONTENT[11:]),
    "gzip, buffered": (lambda path: io.BufferedReader(gzip.open(compressed(gzip, path))), CONTENT),  # type: ignore[arg-type]
    "gzip, by Django": (lambda path: File(gzip.open(compressed(gzip, path))), CONTENT),
    "decrypted": (lambda path: Decrypted(encrypted(path)), CONTENT),
    "decrypted, buffered": (lambda path: io.BufferedReader(Decrypted(encrypted(path))), CONTENT),
    "decrypted by a buffer": (lambda path: BufferedDecrypted(io.FileIO(encrypted(path))), CONTENT),
    "decrypted by a wrapper": (lambda path: Passing(encrypted(path).open("rb")), CONTENT),
    "decrypted by another read": (lambda path: decrypting_read(encrypted(path).open("rb")), CONTENT),
    "decrypted by another readinto": (lambda path: decrypting_raw(encrypted(path).open("rb")), CONTENT),
    "decrypted, temporary": (lambda _: decrypting_read(written(tempfile.NamedTemporaryFile(), hidden(CONTENT))), CONTENT),
    "spooled in memory": (lambda _: written(tempfile.SpooledTemporaryFile(max_size=1 << 20)), CONTENT),
    "spooled to disk": (lambda _: written(tempfile.SpooledTemporaryFile(max_size=1)), CONTENT),
    "bytes": (lambda _: io.BytesIO(CONTENT), CONTENT),
    "mapped": (mapped, CONTENT),
    "pipe": (lambda _: pipe(), CONTENT[:10_000]),
    "in a zip": (zipped, CONTENT),
    "in a tar": (tarred, CONTENT),
    "empty": (empty, b""),
    "in /proc": (lambda _: open("/proc/version", "rb"), Path("/proc/version")),
    "in /sys": (lambda _: open("/sys/class/net/lo/mtu", "rb"), Path("/sys/class/net/lo/mtu")),
}
"""Files that must be read: the descriptor gives other bytes, has no length, or does not exist."""

NOT_READ: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: path.open("r"),
    "closed": lambda path: closed(path.open("rb")),
    "closed, gzip": lambda path: closed(gzip.open(compressed(gzip, path))),
    "only written": lambda path: path.open("ab"),
    "only written, unbuffered": lambda path: path.open("ab", buffering=0),
}
"""Files that cannot be read as bytes."""


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Call the application that the path names."""
    name = environ["PATH_INFO"].removeprefix("/")
    query = {key: values[0] for key, values in parse_qs(environ["QUERY_STRING"]).items()}
    if name == "-/events":
        text = json.dumps(EVENTS).encode()
        EVENTS.clear()
        start_response("200 OK", [("Content-Length", str(len(text)))])
        return [text]
    if name.startswith("flask"):
        return FLASK(environ, start_response)
    if name.startswith("django"):
        return DJANGO(environ, start_response)
    path = Path(query["path"])
    make = NOT_READ[name] if name in NOT_READ else (AS_THEY_ARE | READ)[name][0]
    file = make(path)
    headers = [("Content-Length", query["length"])] if "length" in query else []
    start_response(query.get("status", "200 OK"), [("Content-Type", "application/octet-stream"), *headers])
    result: Iterable[bytes] = WRAPPERS[query.get("wrapper", "")](environ["wsgi.file_wrapper"])(
        file, int(query.get("size", "8192"))
    )
    close = file.close

    def note() -> None:
        close()
        EVENTS.append(f"closed {path}")

    with contextlib.suppress(AttributeError):  # some types take no new attributes
        file.close = note
    return result


def decrypting_wrapper(wrapper: Any) -> Any:
    class Decrypting(wrapper):  # type: ignore[misc]
        def __next__(self) -> Any:
            return hidden(super().__next__())

    return Decrypting


WRAPPERS: dict[str, Callable[[Any], Any]] = {"": lambda wrapper: wrapper, "decrypting": decrypting_wrapper}

# Frameworks on top of the wrapper.

FLASK = flask.Flask(__name__)


@FLASK.get("/flask/<what>")
def flask_file(what: str) -> flask.Response:
    path = Path(flask.request.args["path"])
    if what == "path":
        return flask.send_file(path, mimetype="text/plain")
    file = READ[what][0](path) if what in READ else AS_THEY_ARE[what][0](path)
    return flask.send_file(file, mimetype="text/plain")


@FLASK.get("/flask-conditional/<what>")
def flask_conditional(what: str) -> flask.Response:
    """Ranges of a file that must be read: Flask knows its length only from the application."""
    file = READ[what][0](Path(flask.request.args["path"]))
    answer = flask.send_file(file, mimetype="text/plain")
    return answer.make_conditional(flask.request, accept_ranges=True, complete_length=len(CONTENT))  # type: ignore[return-value]


def django_file(request: HttpRequest, what: str) -> FileResponse:
    path = Path(request.GET["path"])
    return FileResponse(READ[what][0](path) if what in READ else AS_THEY_ARE[what][0](path))


urlpatterns = [route("django/<what>", django_file)]
django.conf.settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", USE_TZ=True)
DJANGO = get_wsgi_application()

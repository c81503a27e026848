"""--static: files in front of WSGI inline, in threads, and ASGI; on the same connections as the application's requests."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.integration.client import Client
from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.development import Project

APPS = """\
def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"app {environ['REQUEST_METHOD']} {environ['PATH_INFO']}".encode()]

async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": f"app {scope['method']} {scope['path']}".encode()})
"""
BIG = bytes(range(256)) * 40_000
WAYS = {"inline": ("wsgi", ()), "threads": ("wsgi", ("--threads", 2)), "asgi": ("asgi", ()), "read": ("asgi", ("--no-sendfile",))}


@pytest.fixture(params=["inline", *(pytest.param(way, marks=pytest.mark.heavy) for way in ("threads", "asgi", "read"))])
def project(request: pytest.FixtureRequest, tmp_path: Path, start: Start) -> Project:
    """A project with files below /static and /media, in a server that logs requests."""
    made = Project(tmp_path / "project", start)
    made.save("myapp.py", APPS)
    made.save("static/style.css", "body {{}}")
    made.save("static/a b/ü.txt", "ü")
    made.save("secret.txt", "secret")
    made.save("more/more.js", "1")
    (made.folder / "static" / "big.bin").write_bytes(BIG)
    (made.folder / "static" / "link.css").symlink_to("style.css")
    name, options = WAYS[request.param]
    mounts = ("--static", "/static=static", "--static", "/static/=more", "--static", "/media=./more")
    made.serve_plainly(*mounts, *options, "--access-log", "--access-logformat", "%(r)s %(s)s %(b)s", app=f"myapp:{name}")
    return made


def test_files_are_served_and_all_else_goes_to_the_app(project: Project) -> None:
    with Client(project.command.port) as client:
        style = client.get("/static/style.css")
        assert (style.status, style.text) == (200, "body {{}}")
        assert style["Content-Type"].startswith("text/css")
        assert client.get("/other").text == "app GET /other"
        assert client.get("/static/a%20b/%C3%BC.txt").text == "ü"
        assert client.get("/static/link.css").text == "body {{}}"
        assert client.get("/static/more.js").text == client.get("/media/more.js").text == "1"
        for path in ("/static", "/static/", "/static/none.css", "/static/a%20b", "/static/style.css/", "/staticstyle.css"):
            assert client.get(path).text.startswith("app GET /static"), path
        for path in ("/static/../secret.txt", "/static/..%2fsecret.txt", "/static/%2e%2e/secret.txt", "/static//etc/passwd",
                     "/static/%2fetc/passwd", "/static/style.css%00", "/static/%ff"):  # fmt: skip
            answer = client.get(path)
            assert (answer.status, answer.text[:4]) == (200, "app "), path
        assert client.get("/static/style.css", method="POST", body=b"x").text == "app POST /static/style.css"
    eventually(lambda: "GET /static/style.css HTTP/1.1 200 9" in project.command.stdout)


def test_conditions_ranges_and_head(project: Project) -> None:
    with Client(project.command.port) as client:
        whole = client.get("/static/big.bin")
        assert whole.body == BIG
        assert client.get("/static/big.bin", f"If-None-Match: {whole['ETag']}").status == 304
        assert client.get("/static/big.bin", f"If-Modified-Since: {whole['Last-Modified']}").status == 304
        part = client.get("/static/big.bin", "Range: bytes=1000-1999")
        assert (part.status, part.body, part["Content-Range"]) == (206, BIG[1000:2000], f"bytes 1000-1999/{len(BIG)}")
        assert client.get("/static/big.bin", f"Range: bytes={len(BIG)}-").status == 416
        head = client.get("/static/big.bin", method="HEAD")
        assert (head.body, head["Content-Length"]) == (b"", str(len(BIG)))
        (project.folder / "static" / "big.bin").unlink()
        assert client.get("/static/big.bin").text == "app GET /static/big.bin"


def test_clients_that_read_nothing_hold_neither_the_app_nor_other_files(project: Project) -> None:
    with (project.folder / "static" / "video.bin").open("wb") as file:
        file.truncate(1 << 26)
    slow = [Client(project.command.port) for _ in range(3)]

    for one in slow:
        one.request("/static/video.bin", "Range: bytes=0-")
        assert one.sock.recv(12) == b"HTTP/1.1 206"
    with Client(project.command.port) as client:
        assert client.get("/other").text == "app GET /other"
        part = client.get("/static/video.bin", "Range: bytes=-100")

    assert (part.status, part.body) == (206, bytes(100))
    for one in slow:
        one.sock.close()


@pytest.mark.heavy
@pytest.mark.parametrize("name", [b"a\nb", b"a\x7fb", b"\xff"])
def test_a_file_whose_name_fits_into_no_field_is_not_served(tmp_path: Path, start: Start, name: bytes) -> None:
    project = Project(tmp_path / "project", start)
    project.save("myapp.py", APPS)
    project.save("static/a.txt", "file")
    (project.folder / "static" / os.fsdecode(name)).write_text("file")
    project.serve_plainly("--static", "/static=static", app="myapp:wsgi")

    with Client(project.command.port) as client:
        assert client.get(f"/static/{quote(name)}").text.startswith("app GET /static/")


def test_the_url_is_below_the_root_path(tmp_path: Path, start: Start) -> None:
    project = Project(tmp_path / "project", start)
    project.save("myapp.py", APPS)
    project.save("static/a.txt", "file")
    project.serve_plainly("--static", "/static=static", "--root-path", "/shop", app="myapp:asgi")

    with Client(project.command.port) as client:
        assert client.get("/shop/static/a.txt").text == client.get("/static/a.txt").text == "file"
        assert client.get("/shop/shop/static/a.txt").text.startswith("app ")


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        ("/static=none", "forkserve: --static: there is no directory {}/none"),
        ("static=none", "forkserve: --static: 'static=none' is not a path and a directory of the form URL=DIR"),
    ],
)
def test_a_missing_directory_is_a_mistake_in_the_configuration(tmp_path: Path, start: Start, mount: str, message: str) -> None:
    command = start("myapp:app", "--static", mount, cwd=tmp_path)

    assert command.process.wait(30) == 2
    assert command.stderr.strip() == message.format(tmp_path)

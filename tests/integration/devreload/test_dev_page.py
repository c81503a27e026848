"""The error page: its head and body, and in a browser."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from tests.integration.browser import Browser
from tests.integration.client import get
from tests.integration.command import DEADLINE, eventually
from tests.integration.conftest import Start
from tests.integration.development import Project

PAGE = """\
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/html")])
    return [b"<!doctype html><title>app</title><script>fetch('/seen-' + document.title)</script>"]
"""


@pytest.fixture
def project(tmp_path: Path, start: Start) -> Project:
    made = Project(tmp_path / "project", start)
    made.save("myapp.py", "import <b>\n")
    return made.serve()


def test_the_error_comes_first_and_only_the_pages_own_script_may_run(project: Project) -> None:
    port = project.command.port
    page = get(port)

    assert page.status == 500
    assert "<h1>SyntaxError: invalid syntax</h1>\n<p><strong>myapp.py, line 1</strong></p>\n<pre>import &lt;b&gt;" in page.text
    assert re.fullmatch(
        r"default-src 'none'; connect-src 'self'; script-src 'sha256-\S{44}'; style-src 'sha256-\S{44}'",
        page["Content-Security-Policy"],
    )
    probe = f"X-Forkserve-Fault: {page['X-Forkserve-Fault']}"
    assert get(port, "/", probe, method="HEAD")["X-Forkserve-Fault"] == page["X-Forkserve-Fault"]
    posted = get(port, "/", method="POST", body=b"a=1")
    assert posted.status == 500
    assert "<script" not in posted.text
    assert "refresh" not in posted.text
    other = get(port, "/", "X-Forwarded-For: 192.0.2.1").text
    assert "SyntaxError" not in other
    assert "<script" in other

    project.save("myapp.py", PAGE)
    project.until("<title>app</title>")
    eventually(lambda: get(port, "/", probe, method="HEAD").status == 204, "the old worker, which may still accept, has ended")
    assert "HEAD" not in project.command.stderr


def test_only_requests_for_this_machine_are_shown_the_code(project: Project) -> None:
    def shown(*hosts: str) -> list[bool]:
        return ["SyntaxError" in ask(project.command.port, host) for host in hosts]

    assert all(shown("localhost", "LOCALHOST:9000", "shop.localhost:1", "127.0.0.1", "127.1.2.3:80", "[::1]", "[::1]:9000"))
    assert not any(
        shown("shop.test", "localhost.shop.test", "127.0.0.1.shop.test:80", "192.0.2.1", "0.0.0.0", "[2001:db8::1]:80", "x")
    )


def ask(port: int, host: str) -> str:
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as sock:
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: sock.recv(65536), b"")).decode()


@pytest.mark.heavy
def test_a_browser_shows_the_next_error_and_then_the_app(project: Project, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{project.command.port}/"
    with Browser(url, tmp_path / "browser"):
        project.command.find(r"GET / 500")
        project.command.traceback_expected = True
        project.save("myapp.py", "import another\n")
        project.command.find(r"GET / 500", times=2)
        project.save("myapp.py", PAGE)
        project.command.find(r"GET / 200")
        project.command.find(r"GET /seen-app 200")
    assert "HEAD" not in project.command.stderr

"""Real workers behind the real nginx, HAProxy and Caddy, with the configuration from `forkserve nginx`."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from tests.integration.client import Client, get
from tests.integration.command import Command, eventually, run
from tests.integration.conftest import Start
from tests.integration.frontend import FrontEnd, certificate, short

pytestmark = pytest.mark.heavy

__all__ = ["certificate", "short"]

KINDS = pytest.mark.parametrize("kind", ["nginx", "haproxy", "caddy"])
APPS = "tests.integration.front_apps"
MIB = 1 << 20

Pair = Callable[..., tuple[Command, FrontEnd]]


@pytest.fixture
def pair(serve: Start, short: Path, tmp_path: Path) -> Iterator[Pair]:
    """A function that starts a server and a front end with the same settings; the front end uses the server's addresses."""
    fronts: list[FrontEnd] = []

    def begin(
        kind: str, app: str, *settings: object, front: str = "", address: str = "--base-port 0"
    ) -> tuple[Command, FrontEnd]:
        control = short / "control"
        command = serve(app, *shlex.split(address), "--control-socket", control, *settings)
        options = ["--socket", control, *settings, *shlex.split(front)]
        fronts.append(FrontEnd(kind, options, tmp_path / f"front{len(fronts)}"))
        return command, fronts[-1]

    yield begin
    for one in fronts:
        one.close()


# Requests and responses.


@KINDS
def test_flask_works_behind_a_front_end(pair: Pair, kind: str) -> None:
    _, front = pair(kind, "example_apps.flask_app:app", "--workers", 2)

    with httpx.Client(base_url=f"http://127.0.0.1:{front.port}", trust_env=False, timeout=20) as client:
        assert "<form" in client.get("/").text
        user = client.get("/users/7", params={"q": "ä b"}).json()
        assert user["url"] == f"http://127.0.0.1:{front.port}/users/7?q=ä+b"
        greeting = client.post("/greet", data={"name": "<Ada>"}, files={"file": ("big.bin", b"x" * 2_000_000)})
        assert greeting.text == "Hello, &lt;Ada&gt;! 2000000 bytes came."
        assert client.get("/none").status_code == 404


@KINDS
def test_fastapi_and_a_websocket_work_behind_a_front_end(pair: Pair, kind: str) -> None:
    _, front = pair(kind, "example_apps.fastapi_app:app", "--workers", 2)

    with httpx.Client(base_url=f"http://127.0.0.1:{front.port}", trust_env=False, timeout=20) as client:
        assert client.get("/", params={"name": "Ada"}).json() == {"hello": "Ada"}
        assert client.post("/items", json={"name": "", "price": 1.5}).status_code == 422
        assert len(client.get("/numbers", params={"count": 1000}).text.splitlines()) == 1000
        assert client.post("/upload", content=(b"z" * 1000 for _ in range(500))).json() == {"length": 500_000}
    with connect(f"ws://127.0.0.1:{front.port}/ws") as chat:
        for text in ("one", "zwölf", "x" * 100_000):
            chat.send(text)
            assert chat.recv(20) == text


@KINDS
@pytest.mark.parametrize(("app", "options"), [("app", ()), ("application", ("--threads", 4))])
def test_events_are_not_buffered(pair: Pair, kind: str, app: str, options: tuple[object, ...]) -> None:
    _, front = pair(kind, f"example_apps.stream:{app}", *options)

    def arrive_apart() -> bool:
        """On a busy machine the client may read two chunks at once, so this is tried again."""
        with Client(front.port) as client:
            client.request("/?count=4&interval=0.3")
            head, chunks, arrived = client.head(), client.chunks(), []
            for number in range(4):
                text = b""
                while not text.endswith(b"\n\n"):
                    text += next(chunks)
                assert text.startswith(b"id: %d\n" % number)
                arrived.append(time.monotonic())
        assert head["content-type"] == "text/event-stream"
        return all(later - earlier > 0.15 for earlier, later in itertools.pairwise(arrived))

    eventually(arrive_apart)


@KINDS
def test_an_upload_of_50_mb_reaches_the_app(pair: Pair, kind: str) -> None:
    _, front = pair(kind, f"{APPS}:count", "--limit-request-body", "64m")

    assert get(front.port, method="POST", body=bytes(50 * MIB)).text == str(50 * MIB)


@KINDS
def test_an_upload_that_is_too_large_is_refused(pair: Pair, kind: str) -> None:
    _, front = pair(kind, f"{APPS}:count", "--limit-request-body", "1m")

    with Client(front.port) as client:
        client.request("/", f"Content-Length: {2 * MIB}", method="POST")
        if kind == "caddy":  # Caddy forwards up to the limit, and then ends the request
            with contextlib.suppress(OSError):
                client.send(bytes(2 * MIB))
            assert client.head().status in (400, 413, 502)
        else:
            assert client.head().status == 413
    assert get(front.port, method="POST", body=bytes(MIB)).text == str(MIB)


@KINDS
@pytest.mark.parametrize("path", ["/", "/chunked"])
def test_a_large_download_is_complete(pair: Pair, kind: str, path: str) -> None:
    _, front = pair(kind, f"{APPS}:download")

    with (
        httpx.Client(trust_env=False, timeout=20) as client,
        client.stream("GET", f"http://127.0.0.1:{front.port}{path}?1600") as answer,
    ):
        assert sum(map(len, answer.iter_raw())) == 1600 * 65536


@KINDS
@pytest.mark.parametrize(("app", "interface"), [("application", "wsgi"), ("app", "asgi")])
def test_the_app_sees_the_client_and_its_headers(pair: Pair, kind: str, app: str, interface: str, certificate: Path) -> None:
    tls = f"--tls-cert {certificate} --tls-key {certificate}.key"
    _, front = pair(kind, f"example_apps.echo:{app}", "--workers", 2, front=tls)
    context = ssl.create_default_context(cafile=certificate)

    with Client(front.port, context) as client:
        seen = client.get(
            "/a%20b?q=%20", "X-Forwarded-Proto: http", "Upgrade: h2c", "Connection: upgrade, x-secret", "X-Plain: 1"
        ).json

    raw, headers = seen["raw"], dict(seen["headers"])
    assert seen["interface"] == interface
    assert (raw["wsgi.url_scheme"] if interface == "wsgi" else raw["scheme"]) == "https"
    assert (raw["REMOTE_ADDR"] if interface == "wsgi" else raw["client"][0]) == "127.0.0.1"
    assert (headers["x-forwarded-for"], headers["x-forwarded-proto"]) == ("127.0.0.1", "https")
    assert (headers["host"], headers["x-plain"]) == ("localhost", "1")
    assert (seen["path"], seen["query"]) == ("/a b", "q=%20")
    assert "h2c" not in headers.get("upgrade", "")


@KINDS
def test_a_mounted_app_gets_its_script_name(pair: Pair, kind: str) -> None:
    _, front = pair(kind, "example_apps.echo:application", "--root-path", "/api")

    raw = get(front.port, "/api/thing?x=1").json["raw"]
    assert (raw["SCRIPT_NAME"], raw["PATH_INFO"], raw["QUERY_STRING"]) == ("/api", "/thing", "x=1")
    assert get(front.port, "/apis").status == 404


@KINDS
def test_a_mounted_app_gets_the_path_as_the_client_sent_it(pair: Pair, kind: str) -> None:
    prefix = "/api" if kind == "haproxy" else "/v1.0~api"
    _, front = pair(kind, "example_apps.echo:app", "--root-path", prefix)

    for path, query in (("/", ""), ("/a%2Fb", "x=%20&y"), ("//x", ""), ("/%41", "a=1"), ("/a/../b", ""), ("/%e4%C3", "")):
        seen = get(front.port, f"{prefix}{path}{'?' if query else ''}{query}").json
        assert (seen["raw"]["raw_path"], seen["query"]) == (repr(f"{prefix}{path}".encode()), query)
    bare = get(front.port, f"{prefix}?x=1")
    if kind == "nginx":
        assert (bare.status, bare["location"]) == (301, f"{prefix}/?x=1")
    else:
        assert (bare.json["path"], bare.json["query"]) == (f"{prefix}/", "x=1")
    for path in ("/other", f"{prefix}x/", prefix.replace(".", "x") + "s/", "/front-health/x"):
        assert get(front.port, path).status == 404
    with connect(f"ws://127.0.0.1:{front.port}{prefix}/ws") as chat:
        chat.send("one")
        assert chat.recv(20) == "one"


@KINDS
def test_a_client_may_pause_in_the_middle_of_a_body(serve: Start, tmp_path: Path, kind: str) -> None:
    """The pause is longer than --timeout, and shorter than --body-timeout."""
    silence = shlex.split("--timeout 0.3 --boot-timeout 0.3 --ws-ping-interval 0.2 --ws-ping-timeout 0.2 --body-timeout 20")
    command = serve(f"{APPS}:count", "--bind", "127.0.0.1:0")
    front = FrontEnd(kind, ["x:y", "--bind", f"127.0.0.1:{command.port}", *silence], tmp_path / "front")
    try:
        with Client(front.port) as client:
            client.request("/", "Content-Length: 2", method="POST")
            client.send(b"x")
            client.sock.settimeout(1.5)
            with pytest.raises(TimeoutError):
                client.sock.recv(1)
            client.sock.settimeout(20)
            client.send(b"x")
            assert client.answer().text == "2"
    finally:
        front.close()


def test_nginx_sets_a_host_for_a_client_without_one(pair: Pair) -> None:
    _, front = pair("nginx", "example_apps.echo:application")

    with Client(front.port) as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert dict(client.answer().json["headers"])["host"] == socket.gethostname()


@pytest.mark.parametrize("options", ["", "--forwarded-allow-ips '*'"])
def test_the_client_is_found_through_another_proxy_and_nginx_s_unix_socket(
    serve: Start, short: Path, tmp_path: Path, options: str
) -> None:
    command = serve("example_apps.echo:application", "--bind", "127.0.0.1:0", *shlex.split(options))
    arguments = ["x:y", "--bind", f"127.0.0.1:{command.port}", *shlex.split(options)]
    front = FrontEnd("nginx", arguments, tmp_path / "front", unix=short / "nginx")
    try:
        for came, client in (("5.5.5.5", "5.5.5.5"), ("6.6.6.6, 5.5.5.5", "5.5.5.5")):
            assert get(front.where, "/", f"X-Forwarded-For: {came}").json["raw"]["REMOTE_ADDR"] == client
        assert get(front.where).json["raw"]["REMOTE_ADDR"] == "127.0.0.1"
    finally:
        front.close()


@KINDS
def test_a_head_as_large_as_the_server_s_limits_passes(pair: Pair, kind: str) -> None:
    _, front = pair(kind, "example_apps.echo:app")

    assert dict(get(front.port, "/", f"X-Long: {'x' * 60_000}").json["headers"])["x-long"] == "x" * 60_000
    assert len(get(front.port, "/", *(f"X-{number}: 1" for number in range(115))).json["headers"]) >= 115
    assert get(front.port, f"/?{'q' * 15_000}").status == 200
    assert get(front.port, f"/?{'q' * 17_000}").status == 414


@KINDS
def test_front_health_works_while_the_server_is_stopped(pair: Pair, kind: str) -> None:
    command, front = pair(kind, "example_apps.hello_wsgi:app")
    os.kill(command.pid, signal.SIGSTOP)
    for pid in command.workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert get(front.port, "/front-health").text.strip() == "ok"
    finally:
        for pid in [*command.workers, command.pid]:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("kind", ["nginx", "caddy"])
def test_the_front_end_serves_static_files(pair: Pair, kind: str, tmp_path: Path) -> None:
    (tmp_path / "my files").mkdir()
    (tmp_path / "my files" / "a.css").write_text("body {}")
    (tmp_path / "secret").write_text("secret")
    _, front = pair(kind, "example_apps.hello_wsgi:app", front=f"--static '/static/={tmp_path}/my files'")

    answer = get(front.port, "/static/a.css")
    assert (answer.text, answer["content-type"].partition(";")[0]) == ("body {}", "text/css")
    assert get(front.port, "/static/none").status == 404
    (tmp_path / "my files" / "sub").mkdir()
    if kind == "nginx":
        assert get(front.port, "/static/sub")["location"] == "/static/sub/", "a relative location works for any address of nginx"
    for path in ("/static../secret", "/static/../secret", "/static/%2e%2e/secret"):
        assert "secret" not in get(front.port, path).text
    assert get(front.port, "/other").text == "Hello, World!"


@KINDS
def test_a_unix_socket_shared_by_all_workers_works(pair: Pair, short: Path, kind: str) -> None:
    _, front = pair(kind, f"{APPS}:gated", "--workers", 2, address=f"--bind 'unix:{short}/all workers'")

    assert get(front.port).text in ("1", "2")


# Load balancing.


def test_a_request_does_not_wait_behind_a_slow_one(pair: Pair, tmp_path: Path) -> None:
    _, front = pair("nginx", f"{APPS}:gated", "--workers", 2)
    gate = tmp_path / "gate"

    with Client(front.port) as slow:
        slow.request(f"/wait?{gate}")
        eventually(gate.with_suffix(".came").exists, "the slow request runs")
        quick = {get(front.port).text for _ in range(20)}
        gate.touch()
        assert quick == {"1", "2"} - {slow.answer().text}


@KINDS
def test_every_worker_gets_requests(pair: Pair, kind: str) -> None:
    _, front = pair(kind, f"{APPS}:gated", "--workers", 3, front="--balance round_robin")

    assert {get(front.port).text for _ in range(30)} == {"1", "2", "3"}


@KINDS
@pytest.mark.parametrize("balance", ["ip_hash", "'hash $http_x_user'"])
def test_a_client_stays_with_its_worker(pair: Pair, kind: str, balance: str) -> None:
    _, front = pair(kind, f"{APPS}:gated", "--workers", 3, front=f"--balance {balance}")

    assert len({get(front.port, "/", "X-User: ada").text for _ in range(20)}) == 1
    if balance != "ip_hash":
        assert len({get(front.port, "/", f"X-User: {number}").text for number in range(40)}) > 1


@pytest.mark.parametrize("root", ["", "/api"])
def test_connections_to_workers_are_kept(pair: Pair, short: Path, root: str) -> None:
    _, front = pair("nginx", "example_apps.echo:app", *(("--root-path", root) if root else ()))

    def peer() -> int:
        return get(front.port, f"{root}/").json["raw"]["client"][1]

    # nginx has a process for each core, each with its own connections. Forwarded headers hide the port of a connection, so the
    # test uses the server's status.
    for _ in range(50):
        peer()
    status = json.loads(run("ctl", "--socket", str(short / "control"), "--json", "status").stdout)["result"]
    assert 1 <= status["workers"][0]["connections"] <= 2 * (os.cpu_count() or 1)
    assert status["workers"][0]["requests"] >= 50


@KINDS
@pytest.mark.parametrize("address", ["--base-port 0", "--bind unix:SHORT/shared"])
def test_killed_workers_lose_no_get_request(pair: Pair, short: Path, kind: str, address: str) -> None:
    command, front = pair(kind, "example_apps.slow:app", "--workers", 2, address=address.replace("SHORT", str(short)))
    answers: list[list[int]] = [[] for _ in range(4)]  # for each client
    ended = threading.Event()

    def ask(own: list[int]) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{front.port}", trust_env=False, timeout=20) as client:
            while not ended.is_set():
                own.append(client.get("/?seconds=0.02").status_code)

    def all_continue(more: int) -> bool:
        """Wait until every client has got this many more responses, so that no request meets two kills; a front end tries thrice."""
        before = [len(own) for own in answers]
        return eventually(lambda: all(len(own) >= number + more for own, number in zip(answers, before, strict=True)), answers)

    threads = [threading.Thread(target=ask, args=(own,)) for own in answers]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            assert all_continue(5)
            victim = command.workers[0]
            os.kill(victim, signal.SIGKILL)
            eventually(
                lambda victim=victim: len(command.workers) == 2 and victim not in command.workers, "the worker is replaced"
            )
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert {status for own in answers for status in own} == {200}

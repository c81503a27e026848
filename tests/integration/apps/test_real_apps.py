"""The example apps, written in common frameworks, served by the real command on both loops."""

from __future__ import annotations

import itertools
import json
import re
import time
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from tests.integration.client import Client, get
from tests.integration.command import Command, eventually
from tests.integration.conftest import Start

pytestmark = pytest.mark.heavy

LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
READERS = pytest.mark.parametrize("reader", ["auto", "python", "h11"])


def http(command: Command, **options: object) -> httpx.Client:
    """Return a real client for the first address."""
    return httpx.Client(base_url=f"http://127.0.0.1:{command.port}", timeout=20, trust_env=False, **options)  # type: ignore[arg-type]


@LOOPS
def test_the_loop_option_selects_the_loop(serve: Start, loop: str) -> None:
    assert get(serve("tests.integration.small_apps:who_asgi", "--base-port", 0, "--loop", loop).port).json["loop"] == loop


@READERS
@pytest.mark.parametrize("app", ["hello_wsgi", "hello_asgi"])
def test_hello_responds_with_all_default_headers(serve: Start, reader: str, app: str) -> None:
    command = serve(f"example_apps.{app}:app", "--base-port", 0, "--http", reader)

    with Client(command.port) as client:
        for _ in range(3):
            answer = client.get()
            assert (answer.status, answer.text, answer["content-length"]) == (200, "Hello, World!", "13")
            assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", answer["date"])
            assert answer["server"].startswith("forkserve")
            assert "connection" not in answer
        head = client.get(method="HEAD")
        assert (head.status, head["content-length"], head.body) == (200, "13", b"")


@LOOPS
@pytest.mark.parametrize("threads", [0, 4])
def test_the_flask_example_works(serve: Start, loop: str, threads: int) -> None:
    command = serve("example_apps.flask_app:app", "--base-port", 0, "--loop", loop, "--threads", threads)

    with http(command) as client:
        assert "<form" in client.get("/").text
        user = client.get("/users/7", params={"q": "ä b"}).json()
        assert user == {"id": 7, "url": f"http://127.0.0.1:{command.port}/users/7?q=ä+b", "args": {"q": "ä b"}}
        big = b"x" * 2_000_000  # too large to be kept in memory
        greeting = client.post("/greet", data={"name": "<Ada>"}, files={"file": ("big.bin", big)})
        assert greeting.text == "Hello, &lt;Ada&gt;! 2000000 bytes came."
        assert client.get("/users/none").status_code == 404
        assert client.get("/greet").status_code == 405


@pytest.fixture(scope="module")
def django_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of Django's database; the first worker creates its tables."""
    return tmp_path_factory.mktemp("django") / "site.sqlite3"


@LOOPS
@pytest.mark.parametrize(
    "app",
    [
        "example_apps.django_app:wsgi",
        "example_apps.django_app:asgi",
        "tests.integration.small_apps:validated_django()",
    ],
)
def test_the_django_example_works(serve: Start, loop: str, app: str, django_database: Path) -> None:
    command = serve(
        app,
        "--workers",
        2,
        "--base-port",
        0,
        "--loop",
        loop,
        env={"DJANGO_DATABASE": str(django_database), "DJANGO_SUPERUSER_PASSWORD": "sesame"},
    )

    with http(command) as client:
        visits = [int(client.get("/", params={"name": "Ada"}).text.split()[0]) for _ in range(2)]
        other = httpx.get(f"http://127.0.0.1:{command.ports[1]}/", trust_env=False)
        assert [visits[0] + 1, visits[0] + 2] == [visits[1], int(other.text.split()[0])], "one database for both workers"

        assert client.get("/admin/").headers["location"].startswith("/admin/login/")
        login = client.get("/admin/login/")
        token = re.search('name="csrfmiddlewaretoken" value="([^"]+)"', login.text)
        assert token
        form = {"username": "admin", "password": "sesame", "csrfmiddlewaretoken": token[1], "next": "/admin/"}
        signed_in = client.post("/admin/login/", data=form, follow_redirects=True)
        assert "Site administration" in signed_in.text
        assert "Ada" in client.get("/admin/example_apps.django_app/visit/".replace("example_apps.", "")).text

        (sheet,) = re.findall(r'href="(/static/admin/css/base\.css)"', signed_in.text)
        style = client.get(sheet)
        assert style.headers["content-type"].startswith("text/css")
        assert len(style.content) == int(style.headers["content-length"]) > 1000
        assert client.get(sheet, headers={"If-Modified-Since": style.headers["last-modified"]}).status_code == 304
        assert client.get("/nowhere").status_code == 404


@LOOPS
def test_the_fastapi_example_works(serve: Start, loop: str) -> None:
    command = serve("example_apps.fastapi_app:app", "--base-port", 0, "--loop", loop)

    with http(command) as client:
        assert client.get("/", params={"name": "Ada"}).json() == {"hello": "Ada"}
        assert client.post("/items", json={"name": "pen", "price": 1.5}).status_code == 201
        assert client.post("/items", json={"name": "", "price": 1.5}).status_code == 422
        assert "swagger" in client.get("/docs").text
        with client.stream("GET", "/numbers", params={"count": 1000}) as answer:
            assert answer.headers["transfer-encoding"] == "chunked"
            assert list(answer.iter_lines()) == [str(number) for number in range(1000)]
        body = b"y" * 3_000_000
        assert client.post("/upload", content=body).json() == {"length": len(body)}
        pieces = (b"z" * 1000 for _ in range(500))
        assert client.post("/upload", content=pieces).json() == {"length": 500_000}
        sent = client.post("/files", files={"file": ("name.txt", b"content")})
        assert sent.json() == {"filename": "name.txt", "length": 7}
    with connect(f"ws://127.0.0.1:{command.port}/ws") as socket:
        for text in ("one", "zwölf", "x" * 100_000):
            socket.send(text)
            assert socket.recv(10) == text


@LOOPS
def test_the_starlette_example_works(serve: Start, loop: str) -> None:
    command = serve("example_apps.starlette_app:app", "--base-port", 0, "--loop", loop)
    url = f"http://127.0.0.1:{command.port}"

    with http(command) as client:
        assert client.get("/").json() == {"seen": []}
        # A background task stores the URL after the response, in a thread: perhaps after the next request.
        eventually(lambda: f"{url}/" in client.get("/?again").json()["seen"])
        assert client.post("/upload", content=b"\x00\xff" * 50_000).content == b"\x00\xff" * 50_000
        assert client.put("/upload").status_code == 405
    with connect(f"{url.replace('http', 'ws')}/ws") as socket:
        socket.send("quiet")
        assert socket.recv(10) == "QUIET"


@LOOPS
def test_the_chat_example_broadcasts_messages(serve: Start, loop: str) -> None:
    command = serve("example_apps.chat:app", "--base-port", 0, "--loop", loop)
    url = f"ws://127.0.0.1:{command.port}/"

    assert b"<!doctype html>" in get(command.port).body
    with connect(url) as ada, connect(url) as bob:
        bob.send("hello")
        assert (ada.recv(10), bob.recv(10)) == ("hello", "hello")
        bob.close()
        ada.send("anybody?")
        assert ada.recv(10) == "anybody?"


@LOOPS
@pytest.mark.parametrize("app", ["application", "app"])
def test_the_slow_example_responds_after_its_delay(serve: Start, loop: str, app: str) -> None:
    command = serve(f"example_apps.slow:{app}", "--base-port", 0, "--loop", loop)
    began = time.monotonic()

    assert get(command.port, "/?seconds=0.2").text == "At last.\n"
    assert 0.2 <= time.monotonic() - began < 20


def test_an_asgi_worker_serves_other_requests_while_one_waits(serve: Start, tmp_path: Path) -> None:
    gate, notes = tmp_path / "gate", tmp_path / "notes"
    command = serve("tests.integration.small_apps:gated_asgi", "--base-port", 0, env={"NOTES": str(notes)})

    with Client(command.port) as slow, Client(command.port) as quick:
        slow.request(f"/slow?{gate}")
        command.wait_for("came /slow", notes)
        assert quick.get(f"/quick?{tmp_path}").text == "done\n"
        gate.touch()
        assert slow.answer().text == "done\n"


@LOOPS
@pytest.mark.parametrize(("app", "options"), [("app", ()), ("application", ("--threads", "2")), ("application", ())])
def test_events_arrive_one_by_one(serve: Start, loop: str, app: str, options: tuple[str, ...]) -> None:
    command = serve(f"example_apps.stream:{app}", "--base-port", 0, "--loop", loop, *options)

    def arrive_apart() -> bool:
        """On a busy machine the client may read two chunks at once, so this is tried again."""
        with Client(command.port) as client:
            client.request("/?count=3&interval=0.2")
            head = client.head()
            chunks = client.chunks()
            arrived = []
            for number in range(3):
                event = next(chunks)
                assert event.startswith(b"id: %d\n" % number)
                arrived.append(time.monotonic())
            assert list(chunks) == []
        assert (head["content-type"], head["transfer-encoding"]) == ("text/event-stream", "chunked")
        return all(later - earlier > 0.1 for earlier, later in itertools.pairwise(arrived))

    eventually(arrive_apart)


def test_an_endless_stream_ends_when_its_client_disconnects(serve: Start) -> None:
    command = serve("example_apps.stream:app", "--base-port", 0)

    with Client(command.port) as client:
        client.request("/?interval=0.01")
        client.head()
        for _, chunk in zip(range(3), client.chunks(), strict=False):
            assert chunk
    command.stop()  # `stop` fails if the worker still holds the connection's socket


@pytest.mark.parametrize(("app", "interface"), [("application", "wsgi"), ("app", "asgi")])
@READERS
def test_echo_reports_the_request_as_the_app_received_it(serve: Start, app: str, interface: str, reader: str) -> None:
    command = serve(f"example_apps.echo:{app}", "--base-port", 0, "--http", reader)

    seen = get(command.port, "/a%20b/%C3%A4?q=%20", "X-Thing: one", "X-Thing: two", method="PUT", body=b"\xff\x00").json

    assert (seen["interface"], seen["method"], seen["query"]) == (interface, "PUT", "q=%20")
    assert seen["path"] == ("/a b/ä" if interface == "asgi" else "/a b/ä".encode().decode("latin-1"))
    assert (seen["body"], seen["length"]) == ("\xff\x00", 2)
    things = [value for name, value in seen["headers"] if name == "x-thing"]
    assert ",".join(things).replace(" ", "") == "one,two"
    assert json.loads(get(command.port).body)["raw"]


def test_the_echo_example_echoes_websocket_messages(serve: Start) -> None:
    command = serve("example_apps.echo:app", "--base-port", 0)

    with connect(f"ws://127.0.0.1:{command.port}/", compression=None) as socket:
        socket.send(b"\x00\xff")
        assert socket.recv(10) == b"\x00\xff"
        socket.send(["in ", "pieces"])
        assert socket.recv(10) == "in pieces"
        assert socket.ping().wait(10)
        socket.close(4321, "enough")

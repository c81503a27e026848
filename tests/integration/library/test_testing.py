"""`forkserve.testing.serve`: an app in a thread of this process, which is afterwards as it was before."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from forkserve import testing
from forkserve.base.errors import AppLoadError, BootError, ConfigError, ListenError
from forkserve.config.table import TABLE
from forkserve.web import inprocess
from tests.integration.certificates import Authority
from tests.integration.command import DEADLINE, descriptors, eventually
from tests.integration.library.library_apps import ASGI, hello

Serve = Callable[..., str]


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """Load what is loaded only once, and uvloop's pipe."""
    for loop in ("uvloop", "asyncio"):
        with testing.serve(hello, loop=loop) as url:
            get(url)


def state() -> dict[str, object]:
    """Return the state of this process that a server could change."""
    return {
        "threads": threading.enumerate(),
        "descriptors": len(descriptors(os.getpid())),
        "signals": [signal.getsignal(one) for one in signal.valid_signals()],
        "wakeup": signal.set_wakeup_fd(-1),
        "handlers": [list(logging.getLogger(name).handlers) for name in (None, "forkserve", "asyncio")],
        "levels": [logging.getLogger(name).level for name in (None, "forkserve")],
        "directory": os.getcwd(),
        "variables": dict(os.environ),
    }


def get(url: str, client: httpx.Client | None = None) -> str:
    answer = (client or httpx).get(url, timeout=DEADLINE)
    assert answer.status_code == 200
    return answer.text


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize(("interface", "threads"), [("wsgi", 0), ("wsgi", 2), ("asgi", 0)])
def test_the_process_is_afterwards_as_before(interface: str, threads: int, loop: str) -> None:
    app = ASGI()

    def use() -> None:
        with (
            testing.serve(hello if interface == "wsgi" else app, loop=loop, threads=threads) as url,
            testing.serve(hello) as other,
            httpx.Client() as client,
        ):
            assert get(f"{url}/a", client) == f"{interface} /a"
            assert get(f"{other}/b", client) == "wsgi /b"

    before = state()
    use()

    assert state() == before
    assert app.events in ([], ["startup", "shutdown"])


def test_websocket(forkserve_server: Serve) -> None:
    with connect(forkserve_server(ASGI()).replace("http", "ws")) as socket:
        socket.send("a")
        assert socket.recv() == "echo a"


def test_tls(forkserve_server: Serve, authority: Authority) -> None:
    url = forkserve_server(hello, certfile=authority.server.cert, keyfile=Path(authority.server.key))

    assert url.startswith("https://")
    assert httpx.get(url, verify=authority.trust()).text == "wsgi /"


def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with testing.serve(hello, uds=path) as url:
        assert url == f"unix:{path}"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert get("http://localhost/", client) == "wsgi /"
    assert not path.exists()


def test_an_app_by_its_name_and_by_a_factory(forkserve_server: Serve) -> None:
    assert get(forkserve_server(f"{hello.__module__}:hello")) == "wsgi /"
    assert get(forkserve_server(lambda: hello, factory=True)) == "wsgi /"


def test_the_access_log_is_written(tmp_path: Path) -> None:
    path = tmp_path / "access"
    with testing.serve(hello, access_logfile=path, access_logformat="%(r)s %(s)s") as url:
        get(url)

    assert path.read_text() == "GET / HTTP/1.1 200\n"


async def broken() -> None:
    raise OSError("no database")


@pytest.mark.parametrize(
    ("app", "settings", "error"),
    [
        ("tests.integration.library.library_apps:helo", {}, AppLoadError("did you mean 'hello'")),
        ("app", {"lifespan": "on"}, BootError("lifespan start-up raised OSError: no database")),
        (hello, {"bind": "192.0.2.1:1"}, ListenError("no interface of this machine has this address")),
        (hello, {"warmup": "/"}, BootError("--warmup /: the app answered 500")),
        (hello, {"certfile": __file__}, ConfigError("TLS cannot be set up")),
        (hello, {"workes": 1}, ConfigError("did you mean 'workers'")),
        (5, {}, ConfigError("neither an application")),
    ],
)
def test_a_failed_start_raises_and_leaves_nothing(app: object, settings: dict[str, object], error: Exception) -> None:
    failing = ASGI()
    failing.starts = broken

    def fail(environ: object, start_response: object) -> None:
        raise KeyError(settings)

    chosen = failing if app == "app" else fail if "warmup" in settings else app
    before = state()
    with pytest.raises(type(error), match=str(error)), testing.serve(chosen, **settings):  # type: ignore[arg-type]
        pass

    assert state() == before


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"workers": 2}, "workers"),
        ({"workers": 1, "reload": True}, "reload"),
        ({"preload": True, "max_requests": 5}, "preload, max_requests"),
        ({"base_port": 0, "daemon": True}, "base_port, daemon"),
        ({"chdir": "/", "timeout": 5, "log_level": "debug"}, "chdir, timeout, log_level"),
        ({"when_ready": lambda server: None}, "when_ready"),
    ],
)
def test_settings_that_need_processes_are_refused(settings: dict[str, object], named: str) -> None:
    expected = f"^{named}: only a server with worker processes has this: use forkserve.run()"
    with pytest.raises(ConfigError, match=expected.replace("(", r"\(").replace(")", r"\)")), testing.serve(hello, **settings):
        pass


def test_settings_that_are_off_are_no_error(forkserve_server: Serve) -> None:
    url = forkserve_server(hello, workers=1, reload=False, preload=False, max_requests=0, timeout=0, log_level="info")

    assert get(url) == "wsgi /"


def test_the_names_of_settings_exist() -> None:
    assert TABLE.keys() >= inprocess._NOT_HERE | inprocess._ALSO_HERE | testing.ADDRESSES
    assert {spec.group for spec in TABLE.values()} >= inprocess._OF_PROCESSES


def test_an_exception_within_the_block_stops_the_server() -> None:
    before = threading.enumerate()
    with pytest.raises(ZeroDivisionError), testing.serve(hello):
        raise ZeroDivisionError

    assert threading.enumerate() == before


def test_a_call_that_does_not_return_is_an_error_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "MOMENT", 0.1)
    entered, done = threading.Event(), threading.Event()

    def stuck(environ: object, start_response: object) -> list[bytes]:
        entered.set()
        done.wait()
        return []

    def request(url: str) -> None:
        httpx.get(url, timeout=DEADLINE)

    before = threading.enumerate()
    server = testing.serve(stuck, graceful_timeout=0.1)
    threading.Thread(target=request, args=(server.__enter__(),)).start()
    assert entered.wait(DEADLINE)
    with pytest.raises(TimeoutError, match="the application does not return from a call"):
        server.__exit__(None, None, None)
    done.set()
    for thread in {*threading.enumerate()} - {*before}:
        thread.join(DEADLINE)


def test_within_a_running_loop() -> None:
    async def use() -> None:
        with testing.serve(ASGI()) as url, testing.serve(hello) as other:
            async with httpx.AsyncClient(timeout=DEADLINE) as client:
                assert (await client.get(url)).text == "asgi /"
                assert (await client.get(other)).text == "wsgi /"

    asyncio.run(use())


def answers(url: str) -> None:
    """Check the server, in a process of multiprocessing."""
    assert get(url) == "wsgi /"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.heavy)])
def test_beside_processes_of_the_test(method: str) -> None:
    context = multiprocessing.get_context(method)
    with testing.serve(hello) as url:
        process = context.Process(target=answers, args=(url,))
        process.start()
        process.join(DEADLINE)
        assert process.exitcode == 0
        assert get(url) == "wsgi /"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_may_leave_the_block() -> None:
    server = testing.serve(hello)
    url = server.__enter__()
    pid = os.fork()
    if pid == 0:
        server.__exit__(None, None, None)
        os._exit(0)
    assert os.waitpid(pid, 0) == (pid, 0)
    assert get(url) == "wsgi /"
    server.__exit__(None, None, None)


def test_requests_are_no_records_of_the_program_s_root_logger() -> None:
    records: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Handler()
    logging.getLogger().addHandler(handler)
    with testing.serve(hello) as url:
        get(url)
    logging.getLogger().removeHandler(handler)
    assert not [record for record in records if record.name.endswith(".access")]


def test_sockets_that_systemd_has_passed_stay_the_program_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "none of the server's business")
    with testing.serve(hello) as url:
        get(url)


def test_a_thread_that_returns_late_closes_what_it_holds() -> None:
    called, may_return = threading.Event(), threading.Event()

    def app(environ: dict[str, object], start_response: Callable[..., object]) -> list[bytes]:
        called.set()
        may_return.wait(DEADLINE)
        return hello(environ, start_response)

    before = state()
    with (
        testing.serve(app, threads=2, graceful_timeout=0.1) as url,
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert called.wait(DEADLINE)
    may_return.set()
    eventually(lambda: state() == before)

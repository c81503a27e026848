"""After TERM, a worker finishes work that goes on after a response, and a delayed drain accepts new connections."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from tests.integration.client import Client, get
from tests.integration.conftest import Start

DELAY = 1.5


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_work_after_the_response_is_finished_at_a_stop(serve: Start, tmp_path: Path, loop: str) -> None:
    """The stop waits for the work as for a response; the lifespan shutdown follows."""
    gate = tmp_path / "gate"
    command = serve("tests.integration.http.asgi_apps:app", "--base-port", 0, "--loop", loop, "--linger", 0.1)
    workers = command.workers
    with Client(command.port) as client, Client(command.port) as gone:
        for one in (client, gone):
            assert one.get(f"/background?gate={gate}").text == "answered"
        gone.sock.close()
        command.kill(signal.SIGTERM)
        assert client.rest() == b"", "the client sees an idle connection that is closed"
        assert command.workers == workers
        gate.touch()
    command.wait()
    assert command.stderr.count("the work is done") == 2
    assert command.stderr.rindex("the work is done") < command.stderr.index("lifespan.shutdown was received")
    assert "ERROR" not in command.stderr


def test_work_after_the_response_is_cancelled_at_the_graceful_timeout(serve: Start, tmp_path: Path) -> None:
    """The stop does not wait for endless work; the lifespan shutdown still runs."""
    command = serve("tests.integration.http.asgi_apps:app", "--base-port", 0, "--linger", 0.1, "--graceful-timeout", 1)
    assert get(command.port, f"/background?gate={tmp_path / 'never'}").text == "answered"
    began = time.monotonic()
    command.kill(signal.SIGTERM)
    command.wait()
    assert 0.9 < time.monotonic() - began < 20
    assert "lifespan.shutdown was received" in command.stderr
    assert "ERROR" not in command.stderr


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("app", "options"),
    [("who", ("--bind", "127.0.0.1:0")), ("who", ("--base-port", 0, "--threads", 2)), ("who_asgi", ("--bind", "127.0.0.1:0"))],
    ids=["inline", "threads", "asgi"],
)
def test_a_delayed_drain_accepts_new_connections(serve: Start, app: str, options: tuple[object, ...]) -> None:
    """A front end that has not noticed the stop may still send clients here; they are served."""
    command = serve(f"tests.integration.small_apps:{app}", *options, "--workers", 1, "--drain-delay", DELAY)
    began = time.monotonic()
    command.kill(signal.SIGTERM)
    command.wait_for("stopping")
    last = began
    while True:
        sent = time.monotonic()
        try:
            assert get(command.port).status == 200
        except (ConnectionRefusedError, ConnectionResetError):
            break
        last = sent
        assert last - began < DELAY + 5
    assert last - began > DELAY - 0.2
    command.wait()


def test_an_endless_lifespan_shutdown_is_cut_short_at_the_graceful_timeout(serve: Start) -> None:
    """The shutdown gets the rest of the graceful timeout; no worker is killed."""
    command = serve("tests.integration.http.asgi_apps:endless_end", "--base-port", 0, "--graceful-timeout", 1)
    command.kill(signal.SIGTERM)
    assert re.search(r"lifespan shutdown is cut short after \d\.\d s", command.wait())
    assert "is killed" not in command.stderr


@pytest.mark.heavy
def test_the_lifespan_shutdown_gets_half_a_second_after_the_graceful_timeout(serve: Start, tmp_path: Path) -> None:
    command = serve("tests.integration.http.asgi_apps:endless_end", "--base-port", 0, "--graceful-timeout", 1)
    with Client(command.port) as client:
        client.request("/endless")
        client.until(b"first")
        command.kill(signal.SIGTERM)
        assert "lifespan shutdown is cut short after 0.5 s" in command.wait()
    assert "a stream is cut off, 0 s after the drain began: GET /endless" in command.stderr
    assert "is killed" not in command.stderr

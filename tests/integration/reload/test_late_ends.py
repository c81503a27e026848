"""What still happens after TERM: work behind an answer is finished, and a delayed drain takes new connections."""

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
def test_work_behind_the_answer_is_finished(serve: Start, tmp_path: Path, loop: str) -> None:
    """It is waited for like an answer, and the lifespan ends behind it."""
    gate = tmp_path / "gate"
    command = serve("tests.integration.http.asgi_apps:app", "--base-port", 0, "--loop", loop, "--linger", 0.1)
    workers = command.workers
    with Client(command.port) as client, Client(command.port) as gone:
        for one in (client, gone):
            assert one.get(f"/background?gate={gate}").text == "answered"
        gone.sock.close()
        command.kill(signal.SIGTERM)
        assert client.rest() == b"", "an idle connection, as far as its client knows"
        assert command.workers == workers
        gate.touch()
    command.wait()
    assert command.stderr.count("the work is done") == 2
    assert command.stderr.rindex("the work is done") < command.stderr.index("lifespan.shutdown was heard")
    assert "ERROR" not in command.stderr


def test_work_behind_the_answer_has_until_the_graceful_timeout(serve: Start, tmp_path: Path) -> None:
    """Work that never ends is given up, and the lifespan ends all the same."""
    command = serve("tests.integration.http.asgi_apps:app", "--base-port", 0, "--linger", 0.1, "--graceful-timeout", 1)
    assert get(command.port, f"/background?gate={tmp_path / 'never'}").text == "answered"
    began = time.monotonic()
    command.kill(signal.SIGTERM)
    command.wait()
    assert 0.9 < time.monotonic() - began < 20
    assert "lifespan.shutdown was heard" in command.stderr
    assert "ERROR" not in command.stderr


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("app", "options"),
    [("who", ("--bind", "127.0.0.1:0")), ("who", ("--base-port", 0, "--threads", 2)), ("who_asgi", ("--bind", "127.0.0.1:0"))],
    ids=["inline", "threads", "asgi"],
)
def test_a_delayed_drain_takes_new_connections(serve: Start, app: str, options: tuple[object, ...]) -> None:
    """A front end that still sends clients here, for it has not heard of the end, does them no harm."""
    command = serve(f"tests.integration.small_apps:{app}", *options, "--workers", 1, "--drain-delay", DELAY)
    began = time.monotonic()
    command.kill(signal.SIGTERM)
    command.wait_for("stopping")
    last = began
    while True:
        asked = time.monotonic()
        try:
            assert get(command.port).status == 200
        except (ConnectionRefusedError, ConnectionResetError):
            break
        last = asked
        assert last - began < DELAY + 5
    assert last - began > DELAY - 0.2
    command.wait()


def test_a_lifespan_that_does_not_end_is_cut_short(serve: Start) -> None:
    """It has what remains of the graceful timeout, and nobody has to be killed."""
    command = serve("tests.integration.http.asgi_apps:endless_end", "--base-port", 0, "--graceful-timeout", 1)
    command.kill(signal.SIGTERM)
    assert re.search(r"lifespan shutdown is cut short after \d\.\d s", command.wait())
    assert "is killed" not in command.stderr


def test_a_lifespan_has_a_moment_though_the_graceful_timeout_is_over(serve: Start, tmp_path: Path) -> None:
    command = serve("tests.integration.http.asgi_apps:endless_end", "--base-port", 0, "--graceful-timeout", 1)
    with Client(command.port) as client:
        client.request("/endless")
        client.until(b"first")
        command.kill(signal.SIGTERM)
        assert "lifespan shutdown is cut short after 0.5 s" in command.wait()
    assert "a stream is cut off, 0 s after the drain began: GET /endless" in command.stderr
    assert "is killed" not in command.stderr

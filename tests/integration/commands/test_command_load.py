"""Many commands and many requests at the same time: none is lost, none runs twice, and neither blocks the other."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from tests.integration.client import Client
from tests.integration.commands.test_worker_commands import ASGI, INLINE, THREADS, Kind, probe
from tests.integration.conftest import Start

CALLS, TOGETHER, WORKERS = 1000, 25, 3


@pytest.mark.heavy
@pytest.mark.parametrize("kind", [ASGI, INLINE, THREADS], ids=["asgi", "inline", "threads"])
def test_a_thousand_calls_under_load_run_once_each(start: Start, tmp_path: Path, kind: Kind) -> None:
    """Each call has a number, and each worker records the numbers of its calls."""
    server = probe(start, tmp_path, kind, workers=WORKERS)
    over = threading.Event()
    answered: list[int] = []
    failed: list[object] = []

    def ask(port: int) -> None:
        try:
            with Client(port) as client:
                while not over.is_set():
                    answer = client.get()
                    answered.append(answer.status)
                    if answer.status != 200:
                        failed.append(answer)
        except Exception as error:  # noqa: BLE001 - the test reports it
            failed.append(error)

    clients = [threading.Thread(target=ask, args=(port,)) for port in server.command.ports]
    for client in clients:
        client.start()
    try:
        answers = pipeline(tmp_path / "control")
    finally:
        over.set()
        for client in clients:
            client.join()

    assert failed == []
    assert len(answered) > 100
    assert sorted(answers) == list(range(CALLS))
    for answer in answers.values():
        assert [(reply["id"], reply["status"]) for reply in answer["result"]] == [(one, "ok") for one in range(1, WORKERS + 1)]
    for reply in server.call("counted"):
        assert reply["value"] == list(range(CALLS))


def pipeline(path: Path) -> dict[int, dict[str, object]]:
    """Send all calls over one connection, some of them at a time; return the answers by number."""
    answers: dict[int, dict[str, object]] = {}
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(20)
        control.connect(str(path))
        with control.makefile("r") as lines:
            for first in range(0, CALLS, TOGETHER):
                numbers = range(first, first + TOGETHER)
                requests = ({"v": 1, "id": number, "command": "call", "args": ["count", number]} for number in numbers)
                control.sendall(b"".join(json.dumps(request).encode() + b"\n" for request in requests))
                for _ in numbers:
                    answer = json.loads(lines.readline())
                    assert answer["id"] not in answers, "answered twice"
                    answers[answer["id"]] = answer
    return answers

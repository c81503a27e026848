"""The attributes that gunicorn's hooks set on `worker` and `server`, and those that they read."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.client import get
from tests.integration.command import eventually
from tests.integration.conftest import Start

if TYPE_CHECKING:
    from pathlib import Path

APP = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""

# What public configurations for gunicorn set, count and read.
HOOKS = """
import json, os, time

def _note(name, *values):
    with open("notes", "a") as file:
        file.write(json.dumps([name, *values]) + "\\n")

def _error(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def nworkers_changed(server, new_value, old_value):
    server._wanted = new_value, old_value

def on_starting(server):
    server.forks = 0
    _note("wanted", *server._wanted)

def pre_fork(server, worker):
    in_use = sorted(one._number for one in server.WORKERS.values() if one.alive)
    server.forks += 1
    worker._number = server.forks
    worker.started = time.time()
    worker.lock = {1}
    worker.log.info("forking worker of age %s, pid %s", worker.age, worker.pid)
    _note("pre_fork", in_use, worker.age, _error(lambda: setattr(worker, "pid", 1)), _error(lambda: worker.wsgi))
    _note("master", worker.cfg.workers, worker.cfg.timeout, worker.nr, worker.ppid == server.pid)
    if worker._number == 2:
        worker.run = "no method any more"

def post_fork(server, worker):
    os.environ["NUMBER"] = str(worker._number)
    _note("post_fork", worker._number, type(worker.started).__name__, server.forks, _error(lambda: worker.lock))
    _note("too early", _error(lambda: worker.wsgi))

def post_worker_init(worker):
    assert worker.ppid == os.getppid()
    missing = [_error(lambda: getattr(worker, name)) for name in ("tmp", "timeout", "invented")]
    _note("init", worker._number, worker.age, worker.nr, worker.cfg.workers, worker.wsgi.__name__, missing)

def pre_request(worker, req):
    _note("request", worker.nr, _error(lambda: setattr(worker, "alive", False)))

def child_exit(server, worker):
    _note("child_exit", worker._number, worker.alive, worker.cfg.workers, worker.nr, _error(lambda: server.app.wsgi()))
"""


@pytest.mark.parametrize("mode", [(), ("--preload",), ("--threads", 2)], ids=["forked", "preload", "threads"])
def test_attributes_of_hooks_reach_the_worker(serve: Start, project: Path, mode: tuple[object, ...]) -> None:
    (project / "forkserve.conf.py").write_text(HOOKS)
    notes = project / "notes"

    def noted(name: str) -> list[list[Any]]:
        return [line[1:] for line in map(json.loads, notes.read_text().splitlines()) if line[0] == name]

    preload = "--preload" in mode
    command = serve("site_app:app", "--base-port", 0, "--workers", 2, *mode, cwd=project)
    own = "AttributeError: worker.pid is set by the server: choose another name"
    no_app = "has no attribute 'wsgi': use worker.wsgi in post_worker_init: the master never imports the app"
    for _, _, refused, wsgi in noted("pre_fork"):
        assert refused == own
        assert wsgi.endswith(no_app)
    lock = "AttributeError: the worker has no attribute 'lock': it was set in the master; with --preload a worker gets only what JSON"
    for number, started, forks, missing in noted("post_fork"):
        assert (started, forks) == ("float", number)
        assert (missing or "").startswith(lock if preload else "")
    assert sorted(number for number, *_ in noted("post_fork")) == [1, 2]
    assert noted("wanted") == [[2, None]]
    assert noted("master") == [[2, 30, 0, True]] * 2
    early = "AttributeError: the worker has no attribute 'wsgi': use post_worker_init or a later hook: the app is not loaded yet"
    assert noted("too early") == [[early]] * 2
    ages = [age for _, age, *_ in noted("pre_fork")]
    for number, age, requests, workers, app, others in noted("init"):
        assert (age, requests, workers, app) == (ages[number - 1], 0, 2, "app")
        assert [text.partition(": use ")[2] for text in others] == [
            "worker.beat() for a heartbeat",
            "worker.cfg.timeout",
            "",
        ]
    kept = "hook pre_fork: worker.run is the worker's own and stays as it is: choose another name"
    assert command.stderr.count(kept) == 1

    get(command.ports[0])
    get(command.ports[0])
    alive = "AttributeError: worker.alive cannot be set: to have this worker replaced, use os.kill(worker.pid, signal.SIGTERM)"
    assert [count for count, _ in noted("request")] == [1, 2]
    assert all(text.startswith(alive) for _, text in noted("request"))

    get(command.ports[1])
    get(command.ports[1])
    *_, survivor, killed = command.workers  # after the mold
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: len(noted("init")) == 3 and noted("child_exit"), notes.read_text)
    ((number, still, workers, requests, app),) = noted("child_exit")
    assert (number in (1, 2), still, workers) == (True, False, 2)
    assert requests <= 2, "the number is up to a second old when a worker is killed"
    assert app == "AttributeError: server.app is a name and has no attribute 'wsgi': use worker.wsgi in post_worker_init"
    assert noted("init")[-1][0] == 3
    assert noted("pre_fork")[-1][0] == [3 - number]

    os.kill(survivor, signal.SIGTERM)
    eventually(lambda: len(noted("child_exit")) == 2, notes.read_text)
    assert noted("child_exit")[1][:4] == [3 - number, False, 2, 2]


@pytest.mark.heavy
def test_attributes_of_hooks_outlive_an_upgrade(serve: Start, project: Path) -> None:
    (project / "forkserve.conf.py").write_text(HOOKS)
    notes = project / "notes"
    command = serve("site_app:app", "--base-port", 0, "--workers", 2, "--reload-settle", 0.1, "--linger", 0.2, cwd=project)
    before = command.workers
    command.kill(signal.SIGUSR2)
    eventually(lambda: notes.read_text().count('["child_exit"') == 2, notes.read_text)
    lines = [json.loads(line) for line in notes.read_text().splitlines()]

    assert set(command.workers).isdisjoint(before)
    assert sorted(line[1] for line in lines if line[0] == "child_exit") == [1, 2]
    assert "hook pre_fork failed" not in command.stderr

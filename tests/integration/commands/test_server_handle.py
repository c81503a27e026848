"""The `server` argument of users' hooks: gunicorn's names and the commands; in a worker it does not reach the master."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

from tests.integration.command import eventually
from tests.integration.conftest import Start

if TYPE_CHECKING:
    from pathlib import Path

APP = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""

# Hooks as in gunicorn's documentation and in public configurations: they log, count, list, and set attributes.
HOOKS = """
import gc, json, os, types

def _note(name, *values):
    with open("notes", "a") as file:
        file.write(json.dumps([name, *values]) + "\\n")

def _finds(start, names):
    "The objects of these classes that can be reached from one, without what every process has: modules, functions, classes."
    seen, todo = set(), [start]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, (types.ModuleType, types.FunctionType, type)) or one is globals():
            continue
        seen.add(id(one))
        if type(one).__name__ in names:
            yield type(one).__name__
        todo += gc.get_referents(one)

def on_starting(server):
    server.log.info("Starting %s on %s", server.proc_name, server.cfg.bind)
    server.reused_ids = {7}
    for change in (lambda: server.scale(3), server.reload):
        try:
            change()
        except Exception as error:
            _note("early", f"{type(error).__name__}: {error}")

def when_ready(server):
    server.log.info("Server is ready. Workers: %s, listening on %s", server.cfg.workers, server.address)
    _note("when_ready", server.address, [str(one) for one in server.LISTENERS], [one.getsockname() for one in server.LISTENERS])
    _note("workers", {pid: worker.id for pid, worker in server.WORKERS.items()}, server.num_workers, server.app, server.pid)
    _note("missing", hasattr(server, "poller"), hasattr(server, "pool"))

def nworkers_changed(server, new_value, old_value):
    server.current_workers = new_value
    if new_value == 2:
        server.stop()

def pre_fork(server, worker):
    server.log.info("Worker spawned (pid: %s)", worker.pid)

def post_fork(server, worker):
    try:
        server.reload()
    except Exception as error:
        refused = f"{type(error).__name__}: {error}"
    found = sorted(set(_finds(server, {"Server", "Master", "MasterLoop", "Children", "Pool", "Poller"})))
    _note("post_fork", os.getppid() == server.pid, sorted(server.reused_ids), server.num_workers, refused, found)

def worker_exit(server, worker):
    server.log.info("Worker exited (pid: %s)", worker.pid)

def child_exit(server, worker):
    _note("child_exit", server.current_workers)

def on_exit(server):
    server.log.info("Shutting down: %s", server.name)
"""


def test_hooks_get_a_handle_and_never_the_master(serve: Start, project: Path) -> None:
    (project / "forkserve.conf.py").write_text(HOOKS)
    notes = project / "notes"

    def noted(name: str) -> list[Any]:
        return [line[1:] for line in map(json.loads, notes.read_text().splitlines()) if line[0] == name]

    command = serve("site_app:app", "--base-port", 0, cwd=project)
    (worker,) = command.workers
    eventually(lambda: noted("missing"), notes.read_text)
    ((address, listeners, names),) = noted("when_ready")
    assert address == names
    assert listeners == [f"http://{host}:{port}" for host, port in address]
    assert noted("workers") == [[{str(worker): 1}, 1, "site_app:app", command.pid]]
    assert noted("missing") == [[False, False]]
    assert noted("early") == 2 * [["CommandError: the server is not running"]], (
        "commands are refused before the listeners are open"
    )
    refused = "CommandError: server.reload can be called in the master only, and this is a worker"
    assert noted("post_fork") == [[True, [7], 1, refused, []]]

    command.kill(signal.SIGTTIN)
    command.wait()
    assert noted("child_exit")[0] == [2]
    assert "Starting site_app on " in command.stderr
    assert "Shutting down: site_app" in command.stderr

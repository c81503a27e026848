"""Arguments with a name, from `forkserve ctl`, from other workers and in the master, also where workers differ."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.integration.client import get
from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.site import Site, source
from tests.integration.steered import Remote

FLUSH = """
    def child_flush(self, table, *, deep=False):
        return [table, deep]
    def child_nap(self, timeout=0, to=0, keywords=0):
        return [timeout, to, keywords]
    def child_accept(self, **options):
        return options
    async def child_pass_on(self):
        from forkserve import current_worker
        replies = await current_worker().call("nap", timeout=10, keywords={"timeout": 1, "to": 2})
        return [reply.value for reply in replies]
"""
NEWER = """
    def child_flush(self, tables, *, force=False):
        return [tables, force]
"""
ASGI = ("app:asgi", "--base-port", 0, "--mixin", "app:Commands")


def out(site: Site, *words: str) -> str:
    done = site.ctl("call", *words)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def test_a_name_is_passed_if_the_command_has_such_a_parameter(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, *ASGI, "-w", 2, code=source() + FLUSH)

    assert out(site, "flush", "table=users", "deep=true") == 'workers 1-2: ["users", true]\n'
    assert out(site, "flush", "deep=[1]", "a=b") == 'workers 1-2: ["a=b", [1]]\n'
    assert out(site, "flush", "--", "table=users") == 'workers 1-2: ["table=users", false]\n'
    assert out(site, "nap", "timeout=1", "to=2", "keywords=3", "--timeout", "20", "--to", "2") == "worker 2: [1, 2, 3]\n"
    assert out(site, "accept", "a=1", "self_=x") == 'workers 1-2: {"a": 1, "self_": "x"}\n'
    assert out(site, "pass_on", "--to", "1") == "worker 1: [[1, 2, 0]]\n"
    wrong = site.ctl("call", "flush", "table=users", "more")
    assert wrong.stdout == "workers 1-2: error: TypeError: flush(table, *, deep=False): multiple values for argument 'table'\n"
    assert wrong.returncode == 1
    shown = site.ctl("commands").stdout
    assert "\nflush TABLE [deep=DEEP]\n" in shown
    hint = site.ctl("flush", "users")
    assert (hint.returncode, hint.stderr) == (
        2,
        "forkserve ctl: 'flush' is a command of the workers: write forkserve ctl call flush\n",
    )


def test_workers_that_differ_refuse_a_name_that_they_do_not_know(start: Start, tmp_path: Path) -> None:
    """A worker that is killed while the files have changed comes back with other commands than the others."""
    site = Site(start, tmp_path, *ASGI, "-w", 2, code=source() + FLUSH)
    site.save(source() + NEWER)
    (pid,) = [row["pid"] for row in site.rows() if row["id"] == 2]
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: pid not in site.pids() and len(site.pids()) == 2, "another worker 2")

    done = site.ctl("call", "flush", "tables=users")
    assert done.stdout.splitlines() == [
        'worker 2: ["users", false]',
        "worker 1: error: TypeError: flush(table, *, deep=False): missing a required argument: 'table'",
    ]
    assert out(site, "flush", "tables=users", "--to", "1") == 'worker 1: ["tables=users", false]\n'
    own = [row for row in site.ask("commands")["result"]["own"] if row["name"] == "flush"]
    assert [(row["keywords"], row["workers"]) for row in own] == [(["table", "deep"], [1]), (["tables", "force"], [2])]


def test_the_master_passes_names_to_its_own_hook(start: Start, tmp_path: Path) -> None:
    remote = Remote(start, tmp_path, "Idle", workers=1)

    assert [one["value"] for one in remote.call("hello", who="you")] == ["hello you from 1"]
    assert [one["value"] for one in remote.call("hello", keywords={"who": "you"}, to="any")] == ["hello you from 1"]
    assert remote.ask("call", "forbidden", why="because")["error"]["code"] == "refused"


SELF = """
import asyncio, json
from pathlib import Path
from forkserve import current_worker

class Names:
    def child_name(self):
        return self.id

    async def child_names(self):
        try:
            return [one.value for one in await self.call("name", include_self=True, timeout=20)]
        except RuntimeError as error:
            return str(error)

    async def child_later(self):
        self.task = asyncio.create_task(self.names_after_the_command())

    async def names_after_the_command(self):
        await asyncio.sleep(0.1)
        Path(f"later-{self.id}").write_text(json.dumps(await self.child_names()))

async def asgi(scope, receive, send):
    if scope["type"] == "http":
        worker = current_worker()
        replies = await worker.call("name", include_self=True, to=json.loads(scope["query_string"] or b'"all"'), timeout=20)
        data = json.dumps([[one.value for one in replies], worker.port, worker.addresses]).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": data})

def wsgi(environ, start_response):
    worker, noted = current_worker(), environ["PATH_INFO"] == "/note"
    call = worker.call("name", include_self=True, timeout=20)
    if noted:
        call.then(lambda replies: Path("noted").write_text(json.dumps([one.value for one in replies])))
    try:
        text = json.dumps([[one.value for one in call.result(20)], worker.port, worker.addresses])
    except RuntimeError as error:
        text = json.dumps(type(error).__name__)
    start_response("200 OK", [])
    return [text.encode()]
"""


@pytest.mark.parametrize("kind", [("app:asgi",), pytest.param(("app:wsgi", "--threads", 2), marks=pytest.mark.heavy)])
def test_a_call_may_include_the_calling_worker(start: Start, tmp_path: Path, kind: tuple[object, ...]) -> None:
    """In ASGI and in threads the request waits for it; in a command that would be for ever."""
    site = Site(start, tmp_path, *kind, "--base-port", 0, "--mixin", "app:Names", "-w", 2, code=SELF)

    for port in site.command.ports:
        assert get(port).json == [[1, 2], port, [f"http://127.0.0.1:{port}"]]
    if kind == ("app:asgi",):
        assert get(site.command.ports[1], "/?2").json[0] == [2]
        assert get(site.command.ports[1], '/?"any"').json[0] in ([1], [2])
    (reply,) = site.call("names", to=1)
    assert reply["value"] == "this worker runs one command at a time, and this is one: use then()"
    if kind == ("app:asgi",):
        site.call("later", to=1)
        later = site.home / "later-1"
        eventually(lambda: later.exists() and later.read_text() == "[1, 2]", "the replies to a task of a command that has ended")


def test_an_inline_worker_runs_its_own_call_after_the_request(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", "--bind", "127.0.0.1:0", "--mixin", "app:Names", "-w", 2, code=SELF)

    assert get(site.command.port, "/note").json == "WouldDeadlock"
    eventually(lambda: (site.home / "noted").exists() and (site.home / "noted").read_text() == "[1, 2]", "the replies of both")

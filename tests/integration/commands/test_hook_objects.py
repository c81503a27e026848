"""The objects that gunicorn's hooks get: the app, the request, the response and the settings, as public configurations use them."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.client import Client, get
from tests.integration.command import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import Start

WSGI = """
def app(environ, start_response):
    body = environ.get("HTTP_X_FORWARDED_PROTO", "none") + " " + environ["wsgi.url_scheme"] + " " + environ["REMOTE_ADDR"]
    start_response("200 OK", [("Content-Length", str(len(body))), ("X-Own", "yes")])
    return [body.encode()]

app.config = {}
"""
ASGI = """
async def app(scope, receive, send):
    headers = dict(scope["headers"])
    body = headers.get(b"x-forwarded-proto", b"none") + f" {scope['scheme']} {scope['client'][0]}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"yes")]})
    await send({"type": "http.response.body", "body": body})

app.config = {}
"""
HOOKS = """
import json, os

def _note(name, *values):
    with open("notes", "a") as file:
        file.write(json.dumps([name, *values], default=str) + "\\n")

def when_ready(server):
    cfg = server.cfg
    _note("cfg", cfg.workers, cfg.bind, cfg.timeout, cfg.threads, cfg.keepalive, cfg.preload_app, cfg.proc_name, cfg.worker_class_str)
    _note("settings", cfg.settings["preload_app"].value, cfg.settings["workers"].get(), cfg.is_ssl, hasattr(cfg, "invented"))

def post_fork(server, worker):
    _note("post_fork", worker.app.callable is None, worker.app.app_uri, worker.cfg.workers, len(worker.sockets))
    worker.app.wsgi().config["forked"] = True

def post_worker_init(worker):
    _note("init", worker.wsgi is worker.app.callable is worker.app.wsgi(), worker.wsgi.config, worker.age)

def pre_request(worker, req):
    req.started = worker.nr
    req.headers.append(("X-FORWARDED-PROTO", "https"))
    req.scheme = "https"
    worker.current_request = req
    _note("pre", req.method, req.uri, req.path, req.query, req.remote_addr[0], req.peer_addr[0], dict(req.headers)["USER-AGENT"])

def post_request(worker, req, environ, resp):
    _note("post", req.started, req is worker.current_request is resp.req, resp.status, resp.status_code, resp.sent)
    _note("resp", dict(resp.headers), resp.response_length, resp.headers_sent)

def worker_int(worker):
    _note("int", worker.app.wsgi().config, worker.pid == os.getpid())

def worker_exit(server, worker):
    _note("exit", worker.app.callable and worker.app.callable.config)  # the next worker may end before it has the app
"""


@pytest.mark.parametrize("app", [WSGI, ASGI], ids=["wsgi", "asgi"])
def test_hooks_get_gunicorns_names(serve: Start, tmp_path: Path, app: str) -> None:
    (tmp_path / "site_app.py").write_text(app)
    (tmp_path / "forkserve.conf.py").write_text(HOOKS)
    notes = tmp_path / "notes"

    def noted(name: str) -> Any:
        found = [line[1:] for line in map(json.loads, notes.read_text().splitlines()) if line[0] == name]
        return found[0] if found else None

    command = serve("site_app:app", "--bind", "127.0.0.1:0", cwd=tmp_path)
    eventually(lambda: noted("settings"), notes.read_text)
    assert noted("cfg") == [1, ["127.0.0.1:0"], 30, 1, 75, False, "site_app", "sync"]
    assert noted("settings") == [False, 1, False, False]
    assert noted("post_fork") == [True, "site_app:app", 1, 1]
    assert noted("init")[:2] == [True, {"forked": True}]

    assert get(command.port, "/a%20b?c=d", "User-Agent: me").body == b"https https 127.0.0.1"
    eventually(lambda: noted("resp"), notes.read_text)
    assert noted("pre") == ["GET", "/a%20b?c=d", "/a b", "c=d", "127.0.0.1", "127.0.0.1", "me"]
    assert noted("post") == [1, True, "200 OK", 200, 21]
    headers, length, sent = noted("resp")
    assert {name.lower(): value for name, value in headers.items()}["x-own"] == "yes"
    assert (length, sent) == (21, True)

    os.kill(command.workers[0], signal.SIGQUIT)
    eventually(lambda: noted("int") and noted("exit"), notes.read_text)
    assert noted("int") == [{"forked": True}, True]
    assert noted("exit") == [{"forked": True}]


BODY = """
def app(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

def pre_request(worker, req):
    if req.method == "GET":
        req.headers.append(("CONTENT-LENGTH", "5"))
    else:
        req.headers = [pair for pair in req.headers if pair[0] != "CONTENT-LENGTH"]
"""


@pytest.mark.parametrize("threads", [0, 1])
def test_a_hook_does_not_change_where_a_request_ends(serve: Start, tmp_path: Path, threads: int) -> None:
    (tmp_path / "site_app.py").write_text(BODY)
    (tmp_path / "forkserve.conf.py").write_text("from site_app import pre_request\n")
    command = serve("site_app:app", "--bind", "127.0.0.1:0", "--threads", threads, cwd=tmp_path)
    with Client(command.port) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert [client.answer().body, client.answer().body] == [b"hello", b""]

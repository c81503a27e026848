"""--admin: a process beside the workers that answers while all of them are busy, and outlives each of them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.integration.client import Client, get
from tests.integration.command import descriptors, eventually, exists, run, state
from tests.integration.conftest import Start
from tests.integration.ops.admin import Admin, token_file

TOKEN = "0123456789abcdef0123"
APP = """
import os, time

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/wait"):
        open(os.environ["GATES"] + "/begun", "a").close()
        while not os.path.exists(os.environ["GATES"] + "/go"):
            time.sleep(0.005)
    start_response("500 Oh" if path == "/fail" else "200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
QUICK = ("--reload-settle", 0, "--linger", 0.1)


def begin(start: Start, project: Path, *options: object, **others: object) -> Admin:
    admin = Admin(start, "site_app:app", *options, cwd=project, env={"GATES": str(project)}, **others)
    admin.command.find("^Ready: ")
    return admin


def send_waiting(admin: Admin, project: Path, target: str = "/wait") -> Client:
    """Send a request that keeps a worker busy until the file `go` is there."""
    client = Client(admin.command.port)
    client.request(target)
    eventually((project / "begun").exists, "the request has begun")
    return client


def test_it_answers_while_every_worker_is_busy_and_shows_no_queries(start: Start, project: Path) -> None:
    admin = begin(start, project)
    with send_waiting(admin, project, "/wait?password=secret") as client:
        assert admin.get("/livez").text.startswith("ok: the master has answered in ")
        assert admin.get("/readyz").text == "ok: 1 worker ready\n"
        found = eventually(lambda: admin.get("/status.json").text if "/wait" in admin.get("/status.json").text else "")
        assert "secret" not in found
        assert admin.metrics()["forkserve_requests_in_flight"] == 1
        stacks = admin.get("/stacks", method="POST").text
        assert "site_app.py" in stacks
        assert "GET /wait?..." in stacks
        assert "secret" not in stacks
        too_soon = admin.get("/stacks", method="POST")
        assert (too_soon.status, too_soon["retry-after"]) == (429, "1")
        (project / "go").touch()
        assert client.answer().status == 200


def test_it_is_a_child_without_the_app_and_without_what_is_the_masters(start: Start, project: Path) -> None:
    (project / "site_app.py").write_text(APP + "open(os.environ['GATES'] + f'/imported-{os.getpid()}', 'w').close()\n")
    admin = begin(start, project, "-w", 2, "--pid", project / "pid", log=project / "log")
    assert {f"imported-{pid}" for pid in admin.workers()} == {one.name for one in project.glob("imported-*")}
    assert admin.get("/livez").status == 200
    eventually(
        lambda: len([one for one in descriptors(admin.pid).values() if one.startswith("socket:")]) <= 4,
        lambda: descriptors(admin.pid),
    )
    opened = descriptors(admin.pid)  # sockets: a pair of the loop, the channel and the listener
    assert str(project / "pid") not in opened.values()
    (ours,) = {name for name in opened.values() if name.startswith("socket:")} & set(descriptors(admin.command.pid).values())
    assert opened[0] == os.devnull
    assert all(ours not in descriptors(pid).values() for pid in admin.workers())


def test_a_process_that_is_killed_is_started_again_and_the_port_stays_open(start: Start, project: Path) -> None:
    admin = begin(start, project)
    first = admin.pid
    os.kill(first, signal.SIGKILL)
    for _ in range(5):
        assert admin.get("/livez").status == 200
    assert admin.pid != first
    admin.command.wait_for(r"\[ERROR\] master: the admin process was killed by SIGKILL, and is started again in 0\.2 s")
    os.kill(admin.pid, signal.SIGKILL)
    admin.command.wait_for(r"is started again in 0\.4 s")
    assert admin.get("/readyz").status == 200


@pytest.mark.heavy
def test_a_process_that_does_not_respond_is_replaced(start: Start, project: Path) -> None:
    admin = begin(start, project)
    assert admin.get("/livez").status == 200  # it has given a sign of life, and is expected to give more
    first = admin.pid
    os.kill(first, signal.SIGSTOP)
    admin.command.wait_for(r"\[ERROR\] master: the admin process does not respond, and is killed")
    assert eventually(lambda: admin.get("/livez").status == 200)
    assert admin.pid != first


@pytest.mark.heavy
def test_a_master_that_was_stopped_for_long_does_not_replace_it(start: Start, project: Path) -> None:
    admin = begin(start, project)
    first = admin.pid
    os.kill(admin.command.pid, signal.SIGSTOP)
    stopped_until = time.monotonic() + 21  # four looks
    eventually(lambda: time.monotonic() > stopped_until)  # this measures a period of time
    os.kill(admin.command.pid, signal.SIGCONT)
    runs_until = time.monotonic() + 6
    eventually(lambda: time.monotonic() > runs_until)
    assert admin.get("/livez").status == 200
    assert admin.pid == first


@pytest.mark.heavy
def test_signals_for_the_group_do_not_end_it_before_the_workers(start: Start, project: Path) -> None:
    admin = begin(start, project)
    pid = admin.pid
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        os.kill(pid, signum)
    assert admin.get("/livez").status == 200
    assert admin.pid == pid


@pytest.mark.heavy
def test_a_master_that_is_stopped_is_not_alive(start: Start, project: Path) -> None:
    admin = begin(start, project)
    assert admin.get("/livez").status == 200
    os.kill(admin.command.pid, signal.SIGSTOP)
    try:
        eventually(lambda: state(admin.command.pid) == "T")
        began = time.monotonic()
        answer = admin.get("/livez")
        assert (answer.status, answer.text) == (503, "not ok: the master is silent: no answer within 2 s\n")
        assert time.monotonic() - began >= 2
        assert admin.get("/metrics").status == 503
        assert admin.get("/readyz").status == 200  # that is another question
    finally:
        os.kill(admin.command.pid, signal.SIGCONT)
    assert eventually(lambda: admin.get("/livez").status == 200)


def test_readyz_is_red_from_the_instant_of_a_stop_while_requests_finish(start: Start, project: Path) -> None:
    admin = begin(start, project, "--drain-delay", 0)
    pid = admin.pid
    with send_waiting(admin, project) as client, Client(admin.where) as kept:
        assert kept.get("/readyz").status == 200
        admin.command.kill(signal.SIGTERM)
        admin.command.wait_for("master: stopping")
        assert kept.get("/readyz").text == "not ok: the server stops\n"
        answer = admin.get("/readyz?format=json")
        assert (answer.status, answer.json) == (503, {"ok": False, "why": "the server stops"})
        assert admin.get("/livez").status == 200
        assert admin.status()["state"] == "stopping"
        assert admin.metrics()["forkserve_stopping"] == 1
        (project / "go").touch()
        assert client.answer().status == 200
    admin.command.wait()
    assert not exists(pid)


@pytest.mark.heavy
def test_it_is_gone_within_a_second_of_the_master(start: Start, project: Path) -> None:
    admin = begin(start, project)
    pid = admin.pid
    admin.command.note_children()
    began = time.monotonic()
    os.kill(admin.command.pid, signal.SIGKILL)
    eventually(lambda: not exists(pid))
    assert time.monotonic() - began < 1 + 1  # the machine may be busy
    admin.command.process.wait()


@pytest.mark.heavy
def test_fewer_ready_workers_than_wanted_are_not_ready(start: Start, project: Path) -> None:
    admin = begin(start, project, "-w", 2, "--ready-workers", 2, "--control-socket", project / "control")
    assert admin.get("/readyz").text == "ok: 2 workers ready\n"
    assert run("ctl", "--socket", str(project / "control"), "scale", "1").returncode == 0
    answer = eventually(lambda: answer if (answer := admin.get("/readyz")).status == 503 else None)
    assert answer.text == "not ok: 1 worker ready, and 2 needed (--ready-workers)\n"


def test_a_reload_keeps_process_and_counters(start: Start, project: Path) -> None:
    admin = begin(start, project, *QUICK, "--control-socket", project / "control")
    pid = admin.pid
    for path in ("/", "/fail", "/"):
        get(admin.command.port, path)
    eventually(lambda: admin.metrics().get("forkserve_responses_total[class=5xx][code=500]") == 1)
    assert run("ctl", "--socket", str(project / "control"), "reload").returncode == 0
    found = eventually(lambda: found if (found := admin.metrics())["forkserve_generation"] == 2 else None)
    assert (
        found["forkserve_generation"],
        found["forkserve_requests_total"],
        found["forkserve_worker_requests_total[worker=1]"],
    ) == (2, 3, 3)
    assert found["forkserve_reloads_total[result=ok]"] == 1
    assert found["forkserve_request_duration_seconds_count"] == 3
    get(admin.command.port)
    eventually(lambda: admin.metrics()["forkserve_requests_total"] == 4)
    assert admin.pid == pid


@pytest.mark.heavy
def test_counters_never_go_back_when_workers_are_killed(start: Start, project: Path) -> None:
    admin = begin(start, project, "-w", 2)
    last: dict[str, float] = {}
    for _ in range(3):
        for _ in range(4):
            get(admin.command.port)
        eventually(lambda: len(admin.workers()) == 2)
        before = admin.status()["restarts"]
        os.kill(admin.workers()[0], signal.SIGKILL)
        eventually(lambda before=before: admin.status()["restarts"] != before)
        found = {
            name: value
            for name, value in admin.metrics().items()
            if name.partition("[")[0].endswith(("_total", "_count", "_bucket"))
        }
        assert not {name: (value, found[name]) for name, value in last.items() if found.get(name, 0) < value}
        last = found
    assert sum(value for name, value in last.items() if name.startswith("forkserve_worker_exits_total")) == 3


@pytest.mark.heavy
def test_an_upgrade_keeps_port_and_counters_and_starts_another_process(start: Start, project: Path) -> None:
    admin = begin(start, project, *QUICK, "--control-socket", project / "control")
    first, where = admin.pid, admin.where
    for _ in range(5):
        get(admin.command.port)
    eventually(lambda: admin.metrics()["forkserve_requests_total"] == 5)
    done = run("ctl", "--socket", str(project / "control"), "upgrade")
    assert done.returncode == 0, done.stderr
    admin.command.wait_for("upgraded in place")
    eventually(lambda: not exists(first))
    found = admin.metrics()
    assert found["forkserve_requests_total"] == 5
    assert found["forkserve_request_duration_seconds_count"] == 5
    assert admin.pid != first
    assert admin.where == where
    assert [one for one in admin.command.stderr.splitlines() if "[ERROR]" in one] == []


def test_a_port_that_is_taken_is_an_error_at_the_start(project: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ended = run("site_app:app", "--bind", "127.0.0.1:0", "--admin", str(port), cwd=project)
    assert ended.returncode == 5
    assert re.fullmatch(rf"forkserve: cannot listen on 127\.0\.0\.1:{port}: port {port} is already in use.*\n", ended.stderr)


def test_a_unix_socket_belongs_to_the_user_and_is_removed(start: Start, project: Path) -> None:
    path = project / "admin.sock"
    options = ("--user", "nobody") if os.geteuid() == 0 else ()
    for folder in (project, *project.parents[:-2]):
        with contextlib.suppress(PermissionError):
            folder.chmod(folder.stat().st_mode | 0o055)
    admin = begin(start, project, *options, admin=f"unix:{path}")
    assert admin.get("/livez").status == 200
    found = path.stat()
    assert (found.st_mode & 0o777, found.st_uid) == (0o660, 65534 if options else os.geteuid())
    if options:
        assert Path(f"/proc/{admin.pid}").stat().st_uid in (65534, 0)  # 0 of a process that cannot be dumped
        assert re.search(r"^Uid:\s+65534\s+65534\s+65534\s", Path(f"/proc/{admin.pid}/status").read_text(), re.MULTILINE)
    admin.command.stop()
    assert not path.exists()


def test_a_token_opens_the_rest_and_commands_only_as_bearer(start: Start, project: Path) -> None:
    path = token_file(project, TOKEN)
    admin = begin(start, project, *QUICK, "--admin-token-file", path, "--admin-write", admin="0.0.0.0:0")
    bearer = f"Authorization: Bearer {TOKEN}"
    assert TOKEN not in Path(f"/proc/{admin.command.pid}/cmdline").read_text()
    assert [admin.get(one).status for one in ("/livez", "/readyz", "/metrics", "/status.json", "/")] == [200, 200, 200, 401, 401]
    assert [admin.get(one, bearer).status for one in ("/status.json", "/", "/none")] == [200, 200, 404]
    assert admin.raw(b"GET /livez HTTP/1.1\r\nHost: evil.example\r\n\r\n") == 421
    assert admin.get("/command/reload", method="POST").status == 401
    done = admin.get("/command/reload", bearer, method="POST")
    assert (done.status, done.json["ok"], done.json["result"]["generation"]) == (200, True, 2)
    done = admin.get("/command/scale", bearer, method="POST", body=b'["+1"]')
    assert (done.status, done.json["result"]) == (200, {"workers": 2})
    assert admin.get("/command/restart", bearer, method="POST", body=b"[1]").json["ok"]
    wrong = {b"{": 400, b'["x", 2]': 400, b"[1e9]": 400, b"[99]": 400, b"x" * 20000: 413}
    assert {body: admin.get("/command/restart", bearer, method="POST", body=body).status for body in wrong} == wrong
    assert admin.get("/command/quit", bearer, method="POST").status == 404
    assert admin.get("/command/reload", bearer, "Origin: http://evil.example", method="POST").status == 403
    assert admin.get("/command/reload", bearer).status == 405


@pytest.mark.heavy
def test_the_log_says_what_other_machines_do_not_get(start: Start, project: Path) -> None:
    admin = begin(start, project, admin="0.0.0.0:0")
    admin.command.wait_for(r"metrics and health \(for the rest, give --admin-token-file\): http://0\.0\.0\.0:")
    assert [admin.get(one).status for one in ("/livez", "/metrics", "/status.json", "/")] == [200, 200, 403, 403]


@pytest.mark.heavy
def test_without_the_setting_nothing_can_be_changed(start: Start, project: Path) -> None:
    admin = begin(start, project, "--admin-token-file", token_file(project, TOKEN))
    assert admin.get("/command/reload", f"Authorization: Bearer {TOKEN}", method="POST").status == 403
    assert admin.command.stop().count("reload") == 0


def test_the_page_may_load_nothing_but_what_is_in_it(start: Start, project: Path) -> None:
    answer = begin(start, project).get("/")
    assert answer.status == 200
    policy = answer["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert [answer[name] for name in ("cache-control", "x-content-type-options", "referrer-policy")] == [
        "no-store",
        "nosniff",
        "no-referrer",
    ]


@pytest.mark.heavy
def test_a_websocket_is_refused_without_a_line_in_the_log(start: Start, project: Path) -> None:
    admin = begin(start, project)
    fields = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    for _ in range(3):
        assert admin.get("/events", "Origin: http://evil.example", *fields).status == 403
    assert admin.get("/livez").status == 200
    assert "[ERROR]" not in admin.command.stop()


@pytest.mark.heavy
def test_readyz_is_red_while_no_worker_is_wanted_even_if_none_is_needed(start: Start, project: Path) -> None:
    admin = begin(start, project, "--ready-workers", 0)
    assert admin.get("/readyz").status == 200
    admin.command.kill(signal.SIGWINCH)
    answer = eventually(lambda: answer if (answer := admin.get("/readyz")).status == 503 else None)
    assert answer.text == "not ok: no worker is wanted (WINCH, or the server is suspended)\n"
    admin.command.kill(signal.SIGTTIN)
    assert eventually(lambda: admin.get("/readyz").status == 200)


@pytest.mark.heavy
def test_a_reload_says_that_it_cannot_change_how_many_must_be_ready(start: Start, project: Path) -> None:
    config = project / "forkserve.toml"
    config.write_text("workers = 2\nready_workers = 2\n")
    admin = begin(start, project, *QUICK, "--config", config)
    config.write_text("workers = 2\nready_workers = 1\n")
    admin.command.kill(signal.SIGHUP)
    admin.command.wait_for("ready.workers.* cannot be changed by a reload: restart the server for that")


def test_slow_hostile_and_many_clients_take_nothing_from_others(start: Start, project: Path) -> None:
    admin = begin(start, project)
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(Client(admin.where)).send(b"GET /livez HTTP/1.1\r\nHo")
        for bad, status in (
            (b"GET / HTTP/1.1\r\n\r\n", 400),
            (b"GET /" + b"a" * 10000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
            (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 100 + b"\r\n", 431),
            (b"POST /stacks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\n", 413),
            (b"POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 405),
            (b"GET /livez HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
            (b"GET /livez HTTP/1.0\r\n\r\n", 200),
            (b"GET /status.json HTTP/1.0\r\n\r\n", 421),
        ):
            assert admin.raw(bad) == status, bad
        assert admin.get("/livez").status == 200
        deaf = stack.enter_context(Client(admin.where))
        for _ in range(100):
            deaf.request("/status.json")
        assert admin.get("/livez").status == 200
    assert admin.get("/metrics").status == 200


@pytest.mark.heavy
def test_more_connections_than_it_takes_wait_for_the_slow_ones_to_be_sent_away(start: Start, project: Path) -> None:
    admin = begin(start, project)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(Client(admin.where)) for _ in range(300)]
        for one in slow:
            one.send(b"GET")
        eventually(lambda: sum(name.startswith("socket:") for name in descriptors(admin.pid).values()) >= 256)
        assert sum(name.startswith("socket:") for name in descriptors(admin.pid).values()) < 265
        assert admin.get("/livez").status == 200  # within the time for a head
    assert admin.get("/livez").status == 200


@pytest.mark.heavy
def test_rotated_logs_are_followed(start: Start, project: Path) -> None:
    log = project / "log"
    admin = begin(start, project, "--control-socket", project / "control", log=log)
    pid = admin.pid
    log.rename(project / "old")
    assert run("ctl", "--socket", str(project / "control"), "reopen-logs").returncode == 0
    eventually(lambda: str(log) in descriptors(pid).values())
    assert str(project / "old") not in descriptors(pid).values()


def test_without_the_package_it_says_what_to_install(project: Path) -> None:
    hidden = project / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import sys\nclass Hidden:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'prometheus_client': raise ModuleNotFoundError(name)\n"
    )
    code = "import importlib.util as u, sys; f = u.find_spec; u.find_spec = lambda n, p=None: None if n == 'prometheus_client' else f(n, p); from forkserve.cli.serve import main; sys.exit(main())"
    ended = run("site_app:app", "--admin", "0", cwd=project, program=("-c", code))
    assert (ended.returncode, ended.stderr) == (2, "forkserve: --admin: needs more packages: pip install 'forkserve[ops]'\n")


@pytest.mark.heavy
def test_a_preloaded_app_has_it_too(start: Start, project: Path) -> None:
    admin = begin(start, project, "--preload")
    assert admin.get("/readyz").status == 200
    socket_name = {name for name in descriptors(admin.pid).values() if name.startswith("socket:")} & set(
        descriptors(admin.command.pid).values()
    )
    others = [pid for pid in admin.command.workers if pid != admin.pid]
    assert all(not socket_name & set(descriptors(pid).values()) for pid in others)

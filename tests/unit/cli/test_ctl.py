"""`forkserve ctl`: its command line, output and exit codes, with a real control socket."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from forkserve.base.errors import CommandError
from forkserve.cli import ctl
from forkserve.cli import serve as cli
from forkserve.cli.cells import duration
from forkserve.cli.ctl_output import show
from forkserve.prefork.control.client import ask, choose
from forkserve.prefork.control.command import commands_of
from forkserve.prefork.ipc.pending import Failure, Pending, Reply
from forkserve.prefork.master.commands import MasterCommands
from tests.unit.prefork.control.control_helpers import Server, short_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

COMMANDS = commands_of(MasterCommands)
SEE = "see forkserve ctl --help, and forkserve ctl commands for your own"
ROOT = Path(__file__).parents[3]


class Answering(Server):
    """A server that runs in a thread and replies to each command as the test sends."""

    def __init__(self, directory: str, **limits: Any) -> None:
        super().__init__(directory, **limits)
        self.answers: dict[str, Any] = {}
        self._over = False
        self._wake, self._woken = socket.socketpair()
        self.poller.watch(self._woken.fileno(), 1, self._end)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while not self._over:
            for call in self.poller.wait(None):
                call()

    def _end(self, _events: int) -> None:
        self._over = True

    def answer(self, name: str, args: Sequence[Any]) -> Pending:
        found = self.answers.get(name)
        if isinstance(found, CommandError):
            raise found
        if callable(found):
            pending = Pending()
            found(pending)
            return pending
        return Pending.of(found)

    def after(self, seconds: float, call: Callable[[], object]) -> None:
        self.poller.at(time.monotonic() + seconds, call)

    def close(self) -> None:
        self._wake.send(b"x")
        self.thread.join()
        super().close()
        self._wake.close()
        self._woken.close()


@pytest.fixture
def server() -> Iterator[Answering]:
    with short_directory() as directory:
        server = Answering(directory)
        yield server
        server.close()


@contextlib.contextmanager
def impostor(*sends: bytes) -> Iterator[str]:
    """Listen, and respond to each connection with the next of these bytes."""
    with short_directory() as directory, socket.socket(socket.AF_UNIX) as listener:
        path = os.path.join(directory, "s.sock")
        listener.bind(path)
        listener.listen()

        def talk() -> None:
            for data in sends:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(data)

        thread = threading.Thread(target=talk)
        thread.start()
        yield path
        thread.join()


Printed = tuple[int, str, str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], server: Answering) -> Callable[[str], Printed]:
    def act(line: str) -> Printed:
        code = cli.main(["ctl", "--socket", server.path, *line.split()])
        return (code, *capsys.readouterr())

    return act


# The command line.


@pytest.mark.parametrize(
    ("line", "executed"),
    [
        ("status", ("status", [], "all", 60)),
        ("--timeout 5 status", ("status", [], "all", 5)),
        ("status --timeout 1m", ("status", [], "all", 60)),
        ("--timeout 5 status --timeout 7", ("status", [], "all", 7)),
        ("status --timeout 0", ("status", [], "all", None)),
        ("reload", ("reload", [], "all", None)),
        ("reload --timeout 5", ("reload", [], "all", 5)),
        ("restart 3", ("restart", [3], "all", 60)),
        ("scale 4", ("scale", [4], "all", 60)),
        ("scale +1", ("scale", ["+1"], "all", 60)),
        ("scale -2", ("scale", ["-2"], "all", 60)),
        ("scale --timeout 3 -2", ("scale", ["-2"], "all", 3)),
        ("scale -- -2", ("scale", ["-2"], "all", 60)),
        ("stacks", ("stacks", [], "all", 60)),
        ("stacks 2", ("stacks", [2], "all", 60)),
        ("call flush", ("call", ["flush"], "all", 60)),
        ("call x -1", ("call", ["x", -1], "all", 60)),
        ("call x -1.5e3 -.5 -1x", ("call", ["x", -1500.0, "-.5", "-1x"], "all", 60)),
        ('call x 1 true null [1] {"a":2} "q" text 1e999 NaN', ("call", ["x", 1, True, None, [1], {"a": 2}, "q", "text", "1e999", "NaN"], "all", 60)),
        ("call x a --to any b", ("call", ["x", "a", "b"], "any", 60)),
        ("call --to 2 x", ("call", ["x"], 2, 60)),
        ("--to 2 call x", ("call", ["x"], 2, 60)),
        ("call x -- --json -1", ("call", ["x", "--json", -1], "all", 60)),
        ("call x -- a=1 -1=2", ("call", ["x", "a=1", "-1=2"], "all", 60)),
        ("call a=1 2=3 a-b=4 =5", ("call", ["a=1", "2=3", "a-b=4", "=5"], "all", 60)),
    ],
)  # fmt: skip
def test_a_command_line_becomes_a_request(
    run: Callable[[str], Printed], server: Answering, line: str, executed: tuple[Any, ...]
) -> None:
    code, _, err = run(line)

    assert (code, err) == (0, "")
    assert server.executed == [executed]


OWN = [
    {"name": "flush", "usage": "TABLE [deep=DEEP]", "keywords": ["table", "deep"], "help": "", "workers": [1, 2]},
    {"name": "flush", "usage": "TABLES [force=FORCE]", "keywords": ["tables", "force"], "help": "", "workers": [3]},
    {"name": "old", "usage": "A", "help": ""},  # of a server that does not know keywords
    {"name": "any", "usage": "[NAME=VALUE...]", "keywords": None, "help": "", "workers": [1, 2, 3]},
    {"name": "drop", "usage": "", "keywords": [], "help": "", "workers": [1, 2, 3]},
]


@pytest.mark.parametrize(
    ("line", "args", "kwargs"),
    [
        ("flush table=users deep=true", [], {"table": "users", "deep": True}),
        ("flush deep=[1] users", ["users"], {"deep": [1]}),
        ("flush x=1 url=a=b", ["x=1", "url=a=b"], {}),
        ("flush table=a=b", [], {"table": "a=b"}),
        ("flush table=", [], {"table": ""}),
        ("flush force=1", [], {"force": 1}),  # of other workers: worker 1 and 2 refuse it
        ("flush force=1 --to 1", ["force=1"], {}),
        ("flush force=1 --to 3", [], {"force": 1}),
        ("flush force=1 --to any", [], {"force": 1}),
        ("flush deep=1 -- table=2", ["table=2"], {"deep": 1}),
        ("old a=1", ["a=1"], {}),
        ("any a=1 timeout=2 to=3", [], {"a": 1, "timeout": 2, "to": 3}),
        ("drop a=1", ["a=1"], {}),
        ("nobody a=1", [], {"a": 1}),  # if a worker has it after all, it refuses what it does not know
    ],
)
def test_an_argument_has_a_name_if_a_worker_has_such_a_parameter(
    run: Callable[[str], Printed], server: Answering, line: str, args: list[Any], kwargs: dict[str, Any]
) -> None:
    server.answers["commands"] = {"own": OWN, "builtin": []}
    assert run(f"call {line}")[::2] == (0, "")

    name, sent, _, _, *named = server.executed[-1]
    assert (name, sent[1:], named) == ("call", args, [kwargs] if kwargs else [])


def test_a_name_that_is_given_twice_is_an_error(run: Callable[[str], Printed], server: Answering) -> None:
    server.answers["commands"] = {"own": OWN, "builtin": []}

    assert run("call flush table=1 table=2") == (2, "", "forkserve ctl: table= is given twice\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("drop", "'drop' is a command of the workers: write forkserve ctl call drop"),
        ("drop users --to 1", "'drop' is a command of the workers: write forkserve ctl call drop"),
        ("dorp", "there is no command 'dorp' (did you mean 'call drop'?)"),
        *((one, f"there is no command '{one}': {SEE}") for one in ("stpo", "top", "qiut", "restrat", "sclae", "upgrad")),
    ],
)
def test_no_destructive_command_is_proposed(run: Callable[[str], Printed], server: Answering, line: str, message: str) -> None:
    builtin = [one.describe() | {"of": "a later version"} for one in COMMANDS.values()]
    server.answers["commands"] = {"own": OWN, "builtin": builtin}

    assert run(line) == (2, "", f"forkserve ctl: {message}\n")
    assert "did you mean" not in ask(server.path, line.split(maxsplit=1)[0])["error"]["message"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "a command is missing: see forkserve ctl --help"),
        ("stauts", "there is no command 'stauts' (did you mean 'status'?)"),
        ("status x -1", "Got unexpected extra arguments (x -1)"),
        ("status --jsn", "No such option '--jsn'. Did you mean '--json'?"),
        ("restart", "Missing argument 'ID'."),
        ("restart one", "ID: 'one' is not the ID of a worker, which is a number"),
        ("restart -1", "ID: '-1' is not the ID of a worker, which is a number"),
        ("scale many", "'many' is not a number of workers: write N, +N or -N"),
        ("scale -2x", "'-2x' is not a number of workers: write N, +N or -N"),
        ("call", "Missing argument 'NAME'."),
        ("call x --foo", "No such option '--foo'. Did you mean '--to'?"),
        ("call x --to some", "--to: 'some' is not all, any or the ID of a worker"),
        ("--to 1 status", "--to belongs to `call`"),
        ("status --timeout soon", "--timeout: 'soon' is not a duration (30, 0.5, 30s, 5m, 2h)"),
        ("status --timeout -5", "--timeout: '-5' is not a duration (30, 0.5, 30s, 5m, 2h)"),
        ("status --timeout 1000d", "--timeout: at most 1000000 seconds, or 0 for no limit"),
        ("status --name x", "--name and --socket both select the server: give one of them"),
    ],
)
def test_a_wrong_command_line_prints_one_line_and_exits_with_2(
    run: Callable[[str], Printed], server: Answering, line: str, message: str
) -> None:
    assert run(line) == (2, "", f"forkserve ctl: {message}\n")
    code, out, err = run(f"--json {line}")
    assert (code, err) == (2, "")
    assert json.loads(out) == {"ok": False, "error": {"code": "usage", "message": message}, "result": None}
    assert {name for name, *_ in server.executed} <= {"commands"}  # the server may have a command that ctl does not know


@pytest.mark.parametrize("line", ["--help", *(f"{name} --help" for name in COMMANDS)])
def test_help_shows_the_table_of_commands(run: Callable[[str], Printed], line: str) -> None:
    code, out, err = run(line)

    assert (code, err) == (0, "")
    name = line.split(maxsplit=1)[0]
    wanted = [name, COMMANDS[name].usage, COMMANDS[name].help] if name in COMMANDS else ["Exit codes", *COMMANDS]
    assert all(one in " ".join(out.split()) for one in wanted)


# The choice of the server.


@pytest.mark.parametrize(
    ("running", "name", "chosen"),
    [
        ([("a", "/a")], None, "/a"),
        ([("a", "/a"), ("a", "/other")], None, "/a"),
        ([("a", "/a"), ("b", "/b")], "b", "/b"),
    ],
)
def test_the_server_is_chosen(running: list[tuple[str, str]], name: str | None, chosen: str) -> None:
    assert choose(running, name) == chosen


@pytest.mark.parametrize(
    ("running", "name", "code", "message"),
    [
        ([], None, 3, "no server of this user is running"),
        ([], "b", 3, "no server named 'b' is running"),
        ([("a", "/a"), ("c", "/c")], "b", 3, "no server named 'b' is running: there is a, c"),
        ([("a", "/a"), ("c", "/c")], None, 2, "several servers are running: select one with --name: a, c"),
    ],
)
def test_an_ambiguous_or_missing_server_is_an_error(
    running: list[tuple[str, str]], name: str | None, code: int, message: str
) -> None:
    with pytest.raises(CommandError) as caught:
        choose(running, name)

    assert str(caught.value).startswith(message)
    assert ctl.EXITS[caught.value.code] == code


def test_without_a_server_ctl_exits_with_3(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    assert cli.main(["ctl", "status", "--socket", str(path)]) == 3
    assert capsys.readouterr() == ("", f"forkserve ctl: no server is running at {path}: No such file or directory\n")
    assert cli.main(["ctl", "status", "--socket", "x" * 200]) == 3
    assert "path too long" in capsys.readouterr().err
    assert cli.main(["ctl", "--json", "--name", "nobody is called so", "status"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "no_server"


# Exit codes.


def call_of(*statuses: str) -> list[Reply]:
    failure = Failure(
        "ValueError", "no such\ttable", "Traceback (most recent call last):\n  File \x1b[31m\nValueError: no such\ttable\n"
    )
    return [
        Reply(i + 1, 10 + i, 1, status, {"a": i}, failure if status == "error" else None) for i, status in enumerate(statuses)
    ]


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (CommandError("port 9004 is taken"), 1, "port 9004 is taken"),
        (CommandError("no\x1b[2Jt yet", "unsupported"), 1, "no\\x1b[2Jt yet"),
        (CommandError("usage: call NAME", "usage"), 2, "usage: call NAME"),
        (call_of("ok", "died"), 1, "1 of 2 failed: worker 2: the worker died"),
        (call_of("ok", "timeout"), 4, "1 of 2 failed: worker 2: no answer in time"),
        (call_of("timeout", "died"), 1, "2 of 2 failed: worker 1: no answer in time"),
        (call_of("ok", "ok"), 0, None),
    ],
)
def test_exit_codes(run: Callable[[str], Printed], server: Answering, answer: Any, code: int, message: str | None) -> None:
    server.answers["call"] = answer
    got, _, err = run("call x")

    assert got == code
    assert err == (f"forkserve ctl: {message}\n" if message else "")
    assert run("call x --json")[::2] == (code, "")


def test_a_command_that_is_late_exits_with_4(run: Callable[[str], Printed], server: Answering) -> None:
    server.answers["restart"] = lambda pending: None

    assert run("restart 1 --timeout 0.05") == (4, "", "forkserve ctl: not done within 0.05 s; it goes on\n")


def test_a_server_that_does_not_reply_is_late() -> None:
    with short_directory() as directory, socket.socket(socket.AF_UNIX) as silent:
        path = os.path.join(directory, "s.sock")
        silent.bind(path)
        silent.listen()
        with pytest.raises(CommandError, match=r"^restart: not done within 0.05 s; it may still be done$") as caught:
            ask(path, "restart", [1], timeout=0.05)
    assert caught.value.code == "timeout"


@pytest.mark.parametrize(
    ("sends", "message"),
    [
        (b"", "the server went away"),
        (b'{"v":1,"id":null,"ok":tr', "the server went away"),
        (b"HTTP/1.1 400 Bad Request\r\n", "what answers there is no forkserve"),
        (b'{"hello":1}\n', "what answers there is no forkserve"),
        (b'{"ok":false,"error":"text"}\n', "what answers there is no forkserve"),
    ],
)
def test_a_server_that_closes_or_sends_garbage_exits_with_1(
    capsys: pytest.CaptureFixture[str], sends: bytes, message: str
) -> None:
    with impostor(sends, sends) as path:
        assert cli.main(["ctl", "--socket", path, "status"]) == 1
        assert capsys.readouterr() == ("", f"forkserve ctl: {message}\n")
        with pytest.raises(CommandError, match=message):
            ask(path, "status")


def test_a_request_to_a_busy_server_is_retried(capsys: pytest.CaptureFixture[str]) -> None:
    busy = b'{"v":1,"id":null,"ok":false,"error":{"code":"busy","message":"busy: too many"},"result":null}\n'
    with impostor(busy, busy, b'{"v":1,"id":null,"ok":true,"error":null,"result":5}\n') as path:
        assert cli.main(["ctl", "--socket", path, "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "error": None, "result": 5}


def test_stop_waits_until_the_server_has_closed_everything(run: Callable[[str], Printed], server: Answering) -> None:
    closed: list[float] = []

    def close() -> None:
        closed.append(time.monotonic())
        server.control.close()

    def stop(pending: Pending) -> None:
        pending.resolve(None)
        server.after(0.2, close)

    server.answers["stop"] = stop
    # This process does not exit; ctl waits for it only a moment.
    assert run("stop") == (0, "stop: done\n", "")
    assert time.monotonic() >= closed[0]


def test_an_over_long_command_line_is_an_error(server: Answering, run: Callable[[str], Printed]) -> None:
    code, out, err = run("call x " + "y" * 1_100_000)

    assert (code, out) == (2, "")
    assert err == "forkserve ctl: a line of more than 1048576 bytes\n"


# Output.


STATUS = {
    "name": "shop",
    "pid": 100,
    "version": "0.1.0",
    "app": "shop:app",
    "state": "degraded",
    "generation": 7,
    "uptime_s": 7500.0,
    "wanted": 2,
    "listeners": [{"address": "http://127.0.0.1:9000", "slot": 1, "down": True}, {"address": "unix:/run/\x1bs", "slot": None}],
    "workers": [
        {"id": 1, "pid": 101, "port": 9000, "generation": 7, "state": "ready", "age_s": 95.2, "requests": 12, "in_flight": 1, "connections": 3, "pss_bytes": 50_000_000, "rss_bytes": 60_000_000, "last_exit": {"reason": "timeout", "code": None, "signal": 9, "at": 1.0}},
        {"id": 2, "pid": None, "port": 9001, "generation": 7, "state": "backoff", "age_s": 0.0, "requests": 0, "in_flight": 0, "connections": 0, "pss_bytes": None, "rss_bytes": None, "last_exit": {"reason": "", "code": 3, "signal": None, "at": 1.0}},
    ],
    "last_reload": {"ok": False, "generation": 8, "seconds": 1.25, "error": "no\nmodule"},
}  # fmt: skip


def test_status_is_printed_as_tables() -> None:
    assert show("status", STATUS) == (
        "shop: degraded, 1 of 2 workers ready, generation 7, up 2h 5m\n"
        "shop:app, pid 100, forkserve 0.1.0\n"
        "last reload (generation 8, 1.2s): failed: no\\nmodule\n"
        "listening on http://127.0.0.1:9000 (worker 1, down)\n"
        "listening on unix:/run/\\x1bs (all workers)\n"
        "\n"
        "ID  PID  PORT  GEN  STATE    AGE     REQUESTS  IN-FLIGHT  OLDEST  LAG  CONNS  MEMORY  LAST-EXIT\n"
        "1   101  9000  7    ready    1m 35s  12        1          -       -    3      47.7M   timeout\n"
        "2   -    9001  7    backoff  -       0         0          -       -    0      -       code 3\n"
    )


def test_status_has_a_table_of_molds() -> None:
    mold = {
        "pid": None,
        "generation": 7,
        "state": "backoff",
        "last_exit": {"reason": "no module named x", "code": 4, "signal": None},
    }
    shown = show("status", {**STATUS, "molds": [{"pid": 99, "generation": 6, "state": "ready", "pss_bytes": 1 << 20}, mold]})
    assert shown.partition("code 3\n\n")[2] == (
        "MOLD  GEN  STATE    MEMORY  LAST-EXIT\n99    6    ready    1.0M    -\n-     7    backoff  -       no module named x\n"
    )


def test_call_prints_replies_and_tracebacks(run: Callable[[str], Printed], server: Answering) -> None:
    server.answers["call"] = call_of("ok", "error", "died")

    assert run("call x")[1] == (
        'worker 1: {"a": 0}\n'
        "worker 2: error: ValueError: no such\\ttable\n"
        "  Traceback (most recent call last):\n"
        "    File \\x1b[31m\n"
        "  ValueError: no such\\ttable\n"
        "worker 3: died: the worker died\n"
    )


def reply(ident: int, value: Any = "ok", status: str = "ok", seconds: float = 0.01) -> dict[str, Any]:
    return {"id": ident, "pid": 100 + ident, "status": status, "value": value, "error": None, "seconds": seconds}


@pytest.mark.parametrize(
    ("replies", "shown"),
    [
        ([reply(number) for number in range(1, 5)], ['workers 1-4: "ok"']),
        ([reply(1), reply(2, None), reply(3), reply(4)], ['workers 1, 3-4: "ok"', "worker 2:       null"]),
        ([reply(1, 5), reply(2, 6), reply(10, 7)], ["worker 1:  5", "worker 2:  6", "worker 10: 7"]),
        (
            [reply(1, None, "timeout", 60), reply(2), reply(3, None, "died")],
            ['worker 2:         "ok"', "worker 1 (1m 0s): timeout: no answer in time", "worker 3:         died: the worker died"],
        ),
        ([reply(0, None, "timeout", 1)], ["no worker (1.0s): timeout: no answer in time"]),
        ([reply(1, seconds=1.2), reply(2, seconds=12.5)], ['workers 1-2 (12s): "ok"']),
        ([reply(1, "one\ntwo\n"), reply(2, "one\n")], ["worker 1:", "  one", "  two", 'worker 2: "one\\n"']),
        ([reply(1, ["x" * 50, "y\x1b" * 10])], ["worker 1: [", f'  "{"x" * 50}",', "  " + '"' + "y\\u001b" * 10 + '"', "]"]),
        ([reply(1, {"a": "x" * 50, "b": [1, "y" * 20]})], ["worker 1: {", f'  "a": "{"x" * 50}",', f'  "b": [1, "{"y" * 20}"]', "}"]),
        ([reply(1, "z" * 100)], [f'worker 1: "{"z" * 100}"']),
        ([], ["there was no ready worker"]),
        ([reply(number, []) for number in range(1, 99, 2)], [f"workers {', '.join(map(str, range(1, 99, 2)))}: []"]),
    ],
)  # fmt: skip
def test_equal_replies_are_shown_once_and_others_stand_out(replies: list[dict[str, Any]], shown: list[str]) -> None:
    assert show("call", replies).splitlines() == shown


def test_commands_and_stacks_are_printed() -> None:
    both = {
        "own": [{"name": "flush", "usage": "TABLE", "help": "Drop a table."}],
        "builtin": [{"name": "stop", "usage": "", "help": "Stop."}],
    }
    assert show("commands", both) == "own:\nflush TABLE  Drop a table.\n\nbuiltin:\nstop  Stop.\n"
    two = [
        {"name": "flush", "usage": "TABLE", "help": "Drop a table.", "workers": [1, 2]},
        {"name": "flush", "usage": "TABLE [force=FORCE] [everything=EVERYTHING]", "help": "", "workers": [3]},
    ]
    assert show("commands", {"own": two}) == (
        "own:\n"
        "flush TABLE  Drop a table. (workers 1-2)\n"
        "flush TABLE [force=FORCE] [everything=EVERYTHING]\n"
        "             (worker 3)\n"
    )
    assert (
        show("stacks", [{"id": 1, "pid": 5, "stacks": "Thread 1:\n  File \x1b\n"}])
        == "worker 1 (pid 5):\n  Thread 1:\n    File \\x1b\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("result", [None, "text", 5, [], [1], [{}], {}, {"a": {"b": None}}, {"workers": [{}], "listeners": [{}]}])
def test_a_result_of_another_version_is_no_traceback(command: str, result: Any) -> None:
    if command == "status" and not isinstance(result, dict):
        return
    assert show(command, result).endswith("\n")


def test_a_failed_reload_prints_the_traceback(run: Callable[[str], Printed], server: Answering) -> None:
    traceback = 'Traceback (most recent call last):\n  File "/srv/app.py", line 4, in <module>\nValueError: \x1b broken\n'
    result = {"generation": 3, "seconds": 0.5, "traceback": traceback}
    server.answers["reload"] = lambda pending: pending.fail(CommandError("the new worker 1 failed to boot"), result)

    assert run("reload") == (
        1,
        "",
        """forkserve ctl: the new worker 1 failed to boot
  Traceback (most recent call last):
    File "/srv/app.py", line 4, in <module>
  ValueError: \\x1b broken
""",
    )
    assert json.loads(run("reload --json")[1])["result"] == result
    for strange in ({**result, "traceback": None}, {**result, "traceback": 5}, [1], None):
        server.answers["reload"] = lambda pending, result=strange: pending.fail(CommandError("no"), result)
        assert run("reload")[2] == "forkserve ctl: no\n"


def test_durations_are_printed_with_units() -> None:
    shown = [duration(seconds) for seconds in (0.04, 9.99, 10, 59.9, 60, 3599, 3600, 86400 * 40.5)]

    assert shown == ["0.0s", "10.0s", "10s", "59s", "1m 0s", "59m 59s", "1h 0m", "40d 12h"]


def test_json_is_one_ascii_object(run: Callable[[str], Printed], server: Answering) -> None:
    server.answers["status"] = {"name": "\x1b\u202e é"}
    code, out, _ = run("status --json")

    assert code == 0
    assert out.isascii()
    assert out.count("\n") == 1
    assert json.loads(out) == {"ok": True, "error": None, "result": {"name": "\x1b\u202e é"}}


def command_line(server: Answering, line: str) -> list[str]:
    return [sys.executable, "-m", "forkserve", "ctl", "--socket", server.path, *line.split()]


def test_a_closed_stdout_is_no_error(server: Answering) -> None:
    server.answers["stacks"] = "x\n" * 200_000
    with subprocess.Popen(command_line(server, "stacks"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_characters_that_stdout_cannot_encode_are_escaped(server: Answering) -> None:
    server.answers["status"] = {"name": "é"}
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(command_line(server, "status"), cwd=ROOT, env=environ, capture_output=True, text=True, check=True)

    assert ended.stdout.startswith("\\xe9: ")


def on_terminal(server: Answering, line: str) -> str:
    """Run with stderr on a terminal; return its output."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command_line(server, line), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while data := os.read(ours, 4096):
                seen += data
        os.close(ours)
        assert process.wait() == 0
    return seen.decode()


def test_progress_is_shown_on_a_terminal(server: Answering) -> None:
    server.text = "1 of 2 \x1bworkers ready"
    server.answers["reload"] = lambda pending: server.after(1.2, lambda: pending.resolve(None))

    assert on_terminal(server, "reload") == "\r1 of 2 \\x1bworkers ready\r" + " " * 24 + "\r"
    assert on_terminal(server, "reload --json") == ""


def test_ctl_does_not_import_modules_of_the_server() -> None:
    code = "import sys, forkserve.cli.ctl; print([name for name in sys.modules if name.startswith('forkserve.prefork.policy.')])"
    shows_percentiles = "['forkserve.prefork.policy.measures']\n"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == shows_percentiles

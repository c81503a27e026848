"""A server under random operations: the actions on it, its answers and its status, and its faults."""

from __future__ import annotations

import contextlib
import os
import random
import re
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration import echo_app, steer
from tests.integration.command import Command, children, descriptors, eventually, exists, state, title
from tests.integration.configurations import GRACEFUL, PURPOSE, Configuration
from tests.integration.conftest import Start
from tests.integration.explanations import Explanations, Kill, Window, clients
from tests.integration.frontend import FrontEnd, program
from tests.integration.site import Site
from tests.ports import free_ports

PATIENCE = 60.0  # seconds for each wait
RECENT = 15.0  # seconds in which an earlier failure of a worker may be the reason of an error
APP = Path(echo_app.__file__).read_text()
CONFIG = "keep_alive = 30\nreload_settle = 0.1\n"
BROKEN_CONFIG = "keep_alive = [\n"
UPGRADED = "the server was upgraded meanwhile"
OTHERWISE = "another command has changed this meanwhile"
FAULTS = {
    "a syntax error": "def broken(:\n",
    "an error at import": f"{APP}\nraise OSError('{PURPOSE}')\n",
    "an exit at import": f"{APP}\nraise SystemExit('{PURPOSE}')\n",
    "a death at import": f"{APP}\nos.kill(os.getpid(), 9)\n",
    "no app": "VERSION = 'none'\n",
    "an error in other workers than the first": (
        f"{APP}\nif os.environ.get('FORKSERVE_WORKER_ID', '1') != '1':\n    raise OSError('{PURPOSE}')\n"
    ),
}
ROW = {
    "id": int,
    "pid": (int, type(None)),
    "port": (int, type(None)),
    "generation": int,
    "state": str,
    "age_s": (int, float),
    "requests": int,
    "in_flight": int,
    "connections": int,
    "pss_bytes": (int, type(None)),
    "rss_bytes": (int, type(None)),
    "last_exit": (dict, type(None)),
}
STATUS = {
    "name": str,
    "pid": int,
    "version": str,
    "app": str,
    "state": str,
    "generation": int,
    "uptime_s": (int, float),
    "wanted": int,
    "listeners": list,
    "workers": list,
    "last_reload": (dict, type(None)),
}
STATES = {"running", "reloading", "stopping", "degraded"}
WORKER_STATES = {"booting", "ready", "draining", "killed", "backoff"}


def memory(pid: int) -> int:
    """Return the anonymous memory of a process, in KiB.

    Private memory would depend on the number of children that share the pages at the moment.
    """
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Anonymous"))


@dataclass
class PendingAnswer:
    """A command of the control socket without an answer so far."""

    words: tuple[object, ...]
    request: steer.Request
    began: float
    was_well: bool  # no other command was pending, and the server was well
    judge: Callable[[Any], str] | None

    @property
    def arrived(self) -> bool:
        """Whether the answer can be read, or the connection has ended."""
        return bool(select.select([self.request._socket], [], [], 0)[0])


@dataclass
class Stage:
    """A server, the actions on it, and its known state."""

    configuration: Configuration
    start: Start
    directory: Path
    seed: int
    began: float = field(default_factory=time.monotonic)
    events: list[str] = field(default_factory=list)
    pending: list[PendingAnswer] = field(default_factory=list)
    due: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # errors of the server
    stopped: set[int] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)  # broken files
    wanted: list[tuple[float, int]] = field(default_factory=list)
    ended: list[Command] = field(default_factory=list)  # killed or stopped masters
    ends: list[float] = field(default_factory=list)  # the times of their ends
    version: int = 1
    trouble: float = 0.0  # the last action that may fail a command
    ended_at: float = 0.0  # the last TERM or QUIT to a worker
    wanted_at: float = 0.0  # the last change of the number of workers
    well_at: float = 0.0  # the last time at which the server was well
    upgrades: int = 0  # how many ends of upgrades the log has to tell before the server can be well
    front: FrontEnd | None = None
    leaving: Window | None = None  # the slots that are not always there

    def __post_init__(self) -> None:
        """Start the server."""
        one = self.configuration
        self.lost = Explanations(one.nginx)
        self.chance = random.Random(f"{self.seed} {one.name}")
        self.port = free_ports(one.most + 1)
        if one.nginx:
            self._write_reload_script()
        words = one.arguments(self.port, self.directory)
        self.site = Site(
            self.start, self.directory, *words, files={"forkserve.toml": CONFIG}, code=self.code(1), env=self._environment()
        )
        self.site.command.traceback_expected = True
        if one.nginx:
            self._wait_for_upstream()
            self.front = FrontEnd("nginx", ["--socket", self.directory / "control"], self.directory / "front")
            eventually((self.directory / "front" / "pid").exists, "the pid file for the reload command")
        self.memory = memory(self.command.pid)
        self.expect_workers(one.least)
        self.sampled()

    def _environment(self) -> dict[str, str]:
        return {"PYTHONDONTWRITEBYTECODE": "1", "NOTES": str(self.directory / "notes")}

    def _write_reload_script(self) -> None:
        front, script = self.directory / "front", self.directory / "tell"
        tell = shlex.join([program("nginx"), *FrontEnd.arguments(front, front / "Caddyfile"), "-s", "reload"])
        script.write_text(f"#!/bin/sh\n[ ! -e {front}/pid ] || {tell}\n")
        script.chmod(0o755)

    def _wait_for_upstream(self) -> None:
        """Wait until the first workers are in the file, nginx has been reloaded, and its old processes have exited."""
        path = self.directory / "upstream"

        def is_current() -> bool:
            text = path.read_text() if path.exists() else ""
            running = any(name.startswith("pipe:") for name in descriptors(self.command.pid).values())
            ports = {f"127.0.0.1:{port}" for port in self.own(range(1, self.configuration.least + 1))}
            return ports == set(re.findall(r"^ *server (\S+) .*(?<! down);", text, re.MULTILINE)) and not running

        eventually(is_current, path.read_text, PATIENCE)
        if self.front is not None:
            pid = self.front.process.pid
            eventually(
                lambda: not any("shutting down" in title(child) for child in children(pid)),
                "the exit of nginx's old workers",
                PATIENCE,
            )

    @property
    def command(self) -> Command:
        """The command of the server."""
        return self.site.command

    @property
    def ports(self) -> list[int]:
        """The ports at which clients are always served."""
        if self.front is not None:
            return [self.front.port]
        one = self.configuration
        return [self.port] * one.shared * 2 + self.own(range(1, one.least + 1)) * one.ports

    @property
    def other_ports(self) -> list[int]:
        """Ports of workers that may be scaled down; those of an autoscaled server are unknown."""
        one = self.configuration
        return self.own(range(one.least + 1, one.most + 1)) if one.ports and not (one.autoscaled or one.nginx) else []

    def own(self, slots: Sequence[int]) -> list[int]:
        """Return the ports of these slots."""
        return [self.port + slot for slot in slots]

    def note(self, text: str) -> None:
        """Record an action."""
        self.events.append(f"{time.monotonic() - self.began:8.3f} {text}")

    def fault(self, text: str) -> None:
        """Record an error of the server."""
        self.note(f"WRONG: {text}")
        self.faults.append(text)

    def disturb(self) -> None:
        """Remember that commands may fail from now on, until the server is well again."""
        self.trouble = time.monotonic()

    def later(self, seconds: float, do: Callable[[], object]) -> None:
        """Schedule an action."""
        self.due.append((time.monotonic() + seconds, do))

    def close(self) -> None:
        """Leave no process behind."""
        for pid in list(self.stopped):
            self.resume(pid)
        for one in self.pending:
            one.request.abandon()
        if self.front is not None:
            self.front.close()

    # Files.

    def code(self, version: int, delay: float = 0.0) -> str:
        """Return the app with a version; its import may take a while."""
        return APP.replace('VERSION = "0"', f'VERSION = "{version}"\ntime.sleep({delay:.2f})', 1)

    def improve(self) -> None:
        """Save the next version of the app."""
        self.version += 1
        self.site.save(self.code(self.version, self.chance.choice([0.0, 0.0, 0.2])))
        self.broken.discard("app.py")
        self.note(f"saved version {self.version}")

    def spoil(self) -> None:
        """Break the app or the configuration file."""
        self.disturb()
        if self.chance.random() < 0.3:
            self.broken.add("forkserve.toml")
            self.site.save(BROKEN_CONFIG, "forkserve.toml")
            self.note("broke the configuration file")
            return
        what = self.chance.choice(list(FAULTS))
        self.broken.add("app.py")
        self.site.save(FAULTS[what], "app.py")
        self.note(f"broke the app: {what}")

    def repair(self) -> None:
        """Repair the broken files."""
        self.disturb()
        if "forkserve.toml" in self.broken:
            self.site.save(CONFIG, "forkserve.toml")
            self.note("repaired the configuration file")
        if "app.py" in self.broken:
            self.improve()
        self.broken.clear()

    # Processes.

    def kill(self, pid: int) -> None:
        """Kill a worker or mold, and record the connections that were lost with it."""
        self.disturb()
        with contextlib.suppress(ProcessLookupError):  # a draining worker may have exited
            os.kill(pid, signal.SIGSTOP)  # so it accepts and closes no connection while they are counted
            eventually(lambda: state(pid) in "TZX", "the process is suspended", PATIENCE)
            peers = clients(pid)
            at = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: not exists(pid), "the process has exited", PATIENCE)
            self.lost.kills.append(Kill(at, time.monotonic(), peers))
            self.note(f"killed {pid}, with {len(peers)} connections")

    def fate(self) -> str:
        """Return the end of the master, if it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return f"it has ended with code {self.command.process.wait(5.0)}"
        return "it lives"

    def status(self) -> dict[str, Any]:
        """Return the result of `status`, if necessary after a running upgrade."""
        return eventually(lambda: self.site.ask("status")["result"], "status", PATIENCE)

    def resume(self, pid: int) -> None:
        """Resume a suspended process."""
        self.stopped.discard(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        self.disturb()

    def signal(self, signum: signal.Signals, pid: int | None = None) -> None:
        """Send a signal to a process, by default to the master."""
        self.note(f"{signum.name} to {pid or 'the master'}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid or self.command.pid, signum)

    def upgrade_by_signal(self) -> None:
        """Upgrade by signal. Nothing answers, and `status` does not tell of the pre-flight, so only the log tells the end."""
        self.upgrades = self._ended_upgrades() + 1
        self.signal(signal.SIGUSR2)
        self.disturb()

    @property
    def upgrading(self) -> bool:
        """Whether an upgrade by signal has not ended yet."""
        return self.upgrades > 0 and self._ended_upgrades() < self.upgrades

    def _ended_upgrades(self) -> int:
        return sum("master: upgraded in place" in line or "master: upgrade failed" in line for line in self.command.log)

    def restart(self, signum: signal.Signals) -> None:
        """Kill or stop the master, and start another one."""
        self.resume_and_repair()
        self.expect_workers(self.configuration.least)
        killed, old, family = signum == signal.SIGKILL, self.command, self.command.workers
        ports = frozenset([*self.ports, *self.other_ports])
        window = Window(time.monotonic(), ports, down=killed or self.front is not None)
        self.lost.windows.append(window)
        self.ended.append(old)
        self.ends.append(window.began)
        self.disturb()
        self.note(f"{signum.name} to the master")
        old.kill(signum)
        if not killed:
            assert old.process.wait(PATIENCE) == 0, f"exit code {old.process.returncode} after {signum.name}"
        eventually(lambda: not any(map(exists, family)), lambda: f"the exit of the workers: {family}", PATIENCE)
        self.note("its workers are gone")
        self.due.clear()
        self.upgrades = 0
        self.site.command = self.start(*old.arguments, cwd=self.site.home, env=self._environment())
        self.site.command.ready()
        self.site.command.traceback_expected = True
        if self.configuration.nginx:
            self._wait_for_upstream()
        window.ended = time.monotonic()
        self.note(f"another one is ready, {window.ended - window.began:.2f} s later")
        self.memory = memory(self.command.pid)
        self.disturb()

    def resume_and_repair(self) -> None:
        """Resume all processes, and repair broken files."""
        for pid in list(self.stopped):
            self.resume(pid)
        if self.broken:
            self.repair()

    # The control socket.

    def ask(self, *words: object, judge: Callable[[Any], str] | None = None, **options: object) -> None:
        """Send a command; its answer is checked when it arrives."""
        was_well = self.well_at > self.trouble and not self.pending and not self.broken
        self.note(f"ctl {' '.join(map(str, words))}{' (all is well)' * was_well}")
        self.pending.append(
            PendingAnswer(words, self.site.begin(str(words[0]), *words[1:], **options), time.monotonic(), was_well, judge)
        )

    def judge_answers(self) -> None:
        """Check the answers that have arrived."""
        for one in [one for one in self.pending if one.arrived]:
            self.pending.remove(one)
            self._judge(one)

    def _judge(self, one: PendingAnswer) -> None:
        name, seconds = " ".join(map(str, one.words)), time.monotonic() - one.began
        try:
            answer = one.request.answer
        except (ValueError, OSError) as error:
            self.note(f"no answer to ctl {name}: {error!r}")
            if not any(at >= one.began for at in self.ends):
                self.fault(f"no answer to ctl {name}: {error!r}")
            return
        self.note(f"answer to ctl {name} after {seconds:.2f} s: {str(answer)[:200]}")
        if not {"ok", "error", "result"} <= answer.keys() or answer["ok"] != (answer["error"] is None):
            self.fault(f"the answer to ctl {name} has a wrong shape: {answer}")
        elif answer["ok"]:
            if one.judge is not None and (wrong := one.judge(answer["result"])):
                self.fault(f"ctl {name}: {wrong}: {answer}")
        elif answer["error"]["message"].startswith(UPGRADED):
            pass  # it was running when the new program took over
        elif answer["error"]["message"] == OTHERWISE and self.wanted_at > one.began:
            pass
        elif one.was_well and self.trouble < one.began and not self.configuration.autoscaled:
            self.fault(f"ctl {name} failed while all was well: {answer['error']}")
        elif "exited with code 0" in answer["error"]["message"] and self.ended_at < one.began - RECENT:
            self.fault(f"ctl {name}: no worker was sent TERM: {answer['error']}")
        elif re.search("failed to boot|died", answer["error"]["message"]) and self.trouble < one.began - RECENT:
            self.fault(f"ctl {name}: no worker failed: {answer['error']}")

    # What it says of itself.

    def sampled(self) -> list[dict[str, Any]]:
        """Read `status`, and check its form and numbers; return the workers."""
        before = time.monotonic()
        try:
            answer = self.site.ask("status")
        except (OSError, ValueError) as error:
            self.note(f"ctl status: {error!r}")
            raise AssertionError(f"the server does not answer any more: {error!r}, {self.fate()}") from error
        if not answer["ok"]:
            if not answer["error"]["message"].startswith(UPGRADED):
                self.fault(f"ctl status failed: {answer}")
            return []
        found = answer["result"]
        wrong = shape(found, STATUS) + [part for row in found["workers"] for part in shape(row, ROW)]
        if wrong or found["state"] not in STATES or found["pid"] != self.command.pid:
            self.fault(f"status: {wrong} {found}")
        rows: list[dict[str, Any]] = found["workers"]
        self._check_workers(found["wanted"], rows, found["settings"])
        well = found["state"] == "running" and len(rows) == found["wanted"] > 0 and {row["state"] for row in rows} == {"ready"}
        if well and not self.upgrading:
            self.well_at = before
        self._see_leaving(found["wanted"] if well and not self.pending else 0)
        return rows

    def _check_workers(self, wanted: int, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
        """Check that there are not more processes than allowed."""
        one, now = self.configuration, time.monotonic()
        self.wanted.append((now, one.most if one.autoscaled else wanted))
        self.wanted = [(at, number) for at, number in self.wanted if at > now - GRACEFUL]
        most = max(number for _, number in self.wanted)
        lingering = settings.get("reload_lingering", 0)  # old workers with streams only; None: as many as workers
        spare = int(lingering) if str(lingering).isdigit() else most
        there = [row for row in rows if row["pid"] is not None and row["state"] in ("booting", "ready", "draining")]
        if len(there) > most + one.surge + spare:
            self.fault(f"{len(there)} workers, though {most} were wanted at most: {rows}")
        if any(row["state"] not in WORKER_STATES for row in rows):
            self.fault(f"a worker is in no known state: {rows}")

    def expect_workers(self, number: int) -> None:
        """Remember a new number of workers: ports of other slots may be closed from now on."""
        self.wanted_at = time.monotonic()
        self.wanted.append((self.wanted_at, number))
        if self.leaving is None and self.other_ports:
            self.leaving = Window(time.monotonic(), frozenset(self.other_ports))
            self.lost.windows.append(self.leaving)

    def _see_leaving(self, wanted: int) -> None:
        """All slots are there, and none is to be removed."""
        if self.leaving is not None and wanted == self.configuration.most:
            self.leaving.ended = time.monotonic()
            self.leaving = None


def shape(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values are missing or have another type."""
    return [name for name, kind in expected.items() if name not in found or not isinstance(found[name], kind)]

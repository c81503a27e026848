"""Rolling reload: every worker is replaced, and no request is lost."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.integration.client import get
from tests.integration.command import eventually, exists
from tests.integration.conftest import Start
from tests.integration.load import Load
from tests.integration.site import Site, source

QUICK = ("--reload-settle", 0.2, "--linger", 1)
ADDRESSES = {"ports": ("--base-port", 0), "shared": ("--bind", "127.0.0.1:0")}
MODES = {"wsgi": ("app:wsgi",), "threads": ("app:wsgi", "--threads", 2), "asgi": ("app:asgi",)}
EVERYWHERE = [
    pytest.param(mode + address, id=f"{mode_name} {address_name}")
    for mode_name, mode in MODES.items()
    for address_name, address in ADDRESSES.items()
]

# Generation 2 and later boot only when the gate exists.
GATED = """
while int(GENERATION) > 1 and not os.path.exists(os.environ["GATE"]):
    time.sleep(0.005)
"""
# The same, but the canary boots immediately.
GATED_OTHERS = """
while int(GENERATION) > 1 and os.environ["FORKSERVE_WORKER_ID"] != "1" and not os.path.exists(os.environ["GATE"]):
    time.sleep(0.005)
"""
LIBRARY = """
import signal, sys
from forkserve import Server
server = Server("app:wsgi", workers=2, base_port=0, reload_settle=0.1, linger=1, control_socket=sys.argv[-1])
show = lambda ended: print(ended.value, ended.error, flush=True)
server.on_signal(signal.SIGUSR2, lambda: server.reload().finally_(show))
sys.exit(server.run())
"""


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that new workers wait for."""
    return tmp_path / "gate"


def wait_until_reloaded(site: Site, generation: int) -> None:
    """Wait until the log reports the reload."""
    site.command.wait_for(rf"\[INFO\] master: reloaded: generation {generation} in ")


def test_a_reload_follows_a_linked_working_directory_to_its_new_target(start: Start, tmp_path: Path) -> None:
    for release in ("one", "two"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "app.py").write_text(source(release))
        (tmp_path / release / "forkserve.toml").write_text(f"header = ['X-Release: {release}']\n")
    current = tmp_path / "current"
    current.symlink_to("one")
    command = start(
        *("app:wsgi", "-w", 2, "--base-port", 0, "--control-socket", "none", *QUICK),
        prefix=("sh", "-c", 'cd "$0" && export PWD && exec "$@"', str(current)),
    ).ready()
    assert get(command.port).json["version"] == "one"

    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(current)
    command.kill(signal.SIGHUP)
    command.wait_for("master: reloaded: generation 2 ")
    answers = [get(port) for port in command.ports]
    assert [(answer.json["version"], answer["x-release"]) for answer in answers] == [("two", "two")] * 2

    current.unlink()
    command.kill(signal.SIGHUP)
    command.wait_for(rf"reload failed: .*the working directory {current}: No such file or directory; nothing was changed")
    assert get(command.port).json["generation"] == "2"


@pytest.mark.heavy
@pytest.mark.parametrize("options", EVERYWHERE)
def test_reloads_lose_no_request(start: Start, tmp_path: Path, options: tuple[str, ...]) -> None:
    site = Site(start, tmp_path, *options, "-w", 3, *QUICK)
    first = site.settled(3)
    with Load(site.command.ports) as load:
        eventually(lambda: load.answered > 50, "load")
        site.save(source("second"))
        site.command.kill(signal.SIGHUP)
        wait_until_reloaded(site, 2)
        second = site.settled(3)

        site.save(source("third"))
        done = site.ctl("reload")
        third = site.settled(3)
        answered = load.answered
        eventually(lambda: load.answered > answered + 50, "load")
    load.check()

    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"generation 3, seconds [\d.]+\n", done.stdout)
    for number, rows in enumerate((first, second, third), 1):
        assert [(row[0], row[2]) for row in rows] == [(1, number), (2, number), (3, number)]
    assert len({row[1] for row in first + second + third}) == 9
    assert not any(exists(row[1]) for row in first + second)
    assert set(load.versions) == {"good", "second", "third"}
    last = site.status()["last_reload"]
    assert (last["ok"], last["generation"], last["error"]) == (True, 3, None)
    assert "WARNING" not in site.command.stderr


def test_a_program_can_reload_its_server(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, program=("-c", LIBRARY))
    before = site.settled(2)
    with Load(site.command.ports) as load:
        site.save(source("second"))
        site.command.kill(signal.SIGUSR2)
        eventually(lambda: site.command.stdout, "the callback was called")
        after = site.settled(2)
        eventually(lambda: load.versions["second"] > 50, "load")
    load.check()

    assert re.fullmatch(r"\{'generation': 2, 'seconds': [\d.]+\} None\n", site.command.stdout)
    assert {row[1] for row in before}.isdisjoint(row[1] for row in after)


def test_commands_work_and_reload_requests_merge_during_a_reload(start: Start, tmp_path: Path, gate: Path) -> None:
    site = Site(
        start, tmp_path, "app:wsgi", *ADDRESSES["ports"], "-w", 2, *QUICK, "--mixin", "app:Commands", code=source(prologue=GATED), env={"GATE": str(gate)}
    )  # fmt: skip
    before = site.pids()
    first = site.begin("reload")
    eventually(lambda: site.status()["state"] == "reloading", "reloading")
    others = [site.begin("reload") for _ in range(3)]
    site.command.kill(signal.SIGHUP)

    assert [(row["id"], row["generation"], row["state"]) for row in site.rows()] == [
        (1, 1, "ready"),
        (1, 2, "booting"),
        (2, 1, "ready"),
    ]
    replies = site.call("which")
    assert [(reply["id"], reply["generation"], reply["value"]) for reply in replies] == [(1, 1, "good"), (2, 1, "good")]
    assert site.ask("commands")["ok"]
    assert site.ask("reopen-logs")["ok"]
    refused = site.ask("restart", 2)
    assert "a reload replaces all workers just now" in refused["error"]["message"]

    gate.touch()
    assert first.answer["result"]["generation"] == 2
    assert [other.answer["result"]["generation"] for other in others] == [3, 3, 3]
    assert site.status()["generation"] == 3
    assert site.pids().isdisjoint(before)
    assert len(re.findall("master: reloaded", site.command.stderr)) == 2


@pytest.mark.heavy
def test_the_client_of_a_reload_sees_its_progress(start: Start, tmp_path: Path, gate: Path) -> None:
    each = GATED.replace('["GATE"]', '["GATE"] + os.environ["FORKSERVE_WORKER_ID"]')
    site = Site(
        start, tmp_path, "app:wsgi", *ADDRESSES["ports"], "-w", 3, *QUICK, code=source(prologue=each), env={"GATE": str(gate)}
    )  # fmt: skip
    lines = site.begin("reload", progress=True).lines()
    steps = ("starting the first worker", "1 of 3 workers replaced", "2 of 3 workers replaced")
    for slot, step in enumerate(steps, 1):
        assert any(line["progress"] == f"generation 2: {step}" for line in lines)
        gate.with_name(f"gate{slot}").touch()
    answer = next(line for line in lines if "progress" not in line)
    assert answer["result"]["generation"] == 2


@pytest.mark.parametrize("prologue", [GATED, GATED_OTHERS], ids=["canary", "rolling"])
def test_a_stop_ends_a_reload(start: Start, tmp_path: Path, gate: Path, prologue: str) -> None:
    site = Site(
        start,
        tmp_path,
        "app:wsgi",
        *ADDRESSES["shared"],
        "-w",
        2,
        *QUICK,
        code=source(prologue=prologue),
        env={"GATE": str(gate)},
    )
    pending = [site.begin("reload"), site.begin("reload")]
    generation = 1 if prologue == GATED else 2
    eventually(
        lambda: (
            (status := site.status())["generation"] == generation and any(row["state"] == "booting" for row in status["workers"])
        ),
        "the reload has begun",
    )
    site.command.kill(signal.SIGTERM)
    site.command.wait()
    for one in pending:
        assert one.answer["error"]["message"] == "the server is stopping"
    assert "reloaded" not in site.command.stderr


def test_reload_surge_replaces_several_workers_at_a_time(start: Start, tmp_path: Path, gate: Path) -> None:
    code = source(prologue=GATED_OTHERS)
    site = Site(
        start, tmp_path, "app:wsgi", *ADDRESSES["ports"], "-w", 4, *QUICK, "--reload-surge", 2, code=code, env={"GATE": str(gate)}
    )
    with Load(site.command.ports) as load:
        pending = site.begin("reload")

        def both() -> bool:
            states = [row["state"] for row in site.rows()]
            assert len(states) <= 6  # a slot that waits for its turn has no row
            assert states.count("ready") >= 4
            return states.count("booting") == 2 and states.count("ready") == 4

        eventually(both, site.rows)
        gate.touch()
        assert pending.answer["ok"]
        eventually(lambda: load.answered > 200, "load")
    load.check()
    assert {row[2] for row in site.settled(4)} == {2}


def test_scale_works_during_a_reload(start: Start, tmp_path: Path, gate: Path) -> None:
    code = source(prologue=GATED)
    site = Site(start, tmp_path, "app:wsgi", *ADDRESSES["shared"], "-w", 2, *QUICK, code=code, env={"GATE": str(gate)})
    with Load(site.command.ports) as load:
        pending = site.begin("reload")
        eventually(lambda: site.status()["state"] == "reloading", "reloading")
        scaled = site.begin("scale", 3)
        eventually(lambda: site.status()["wanted"] == 3, "three workers are wanted")
        gate.touch()
        assert (pending.answer["ok"], scaled.answer["ok"]) == (True, True)
        assert [row[2] for row in site.settled(3)] == [2, 2, 2]
        pending = site.begin("reload")
        assert site.ask("scale", 1)["ok"]
        assert pending.answer["ok"]
        eventually(lambda: load.answered > 200, "load")
    load.check()
    assert [row[2] for row in site.settled(1)] == [3]
    assert site.ask("scale", 2)["ok"]


def test_a_worker_killed_during_a_reload_is_replaced(start: Start, tmp_path: Path, gate: Path) -> None:
    """Old workers are killed while the canary boots. Each slot gets the canary or another new process."""
    site = Site(
        start, tmp_path, "app:wsgi", *ADDRESSES["ports"], "-w", 2, *QUICK, code=source(prologue=GATED), env={"GATE": str(gate)}
    )
    pending = site.begin("reload")
    eventually(lambda: any(row["state"] == "booting" for row in site.rows()), "the canary boots")
    for row in site.rows():
        if row["state"] == "ready":
            os.kill(row["pid"], signal.SIGKILL)
    gate.touch()
    assert pending.answer["ok"]
    assert [row[2] for row in site.settled(2)] == [2, 2]
    assert [row["last_exit"]["signal"] for row in site.rows()] == [9, None]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("how", ["await asyncio.sleep(0.01)", "time.sleep(0.01)"], ids=["awaits", "blocks"])
def test_term_to_a_canary_during_its_lifespan_startup_fails_the_reload(start: Start, tmp_path: Path, loop: str, how: str) -> None:
    code = source(startup=f"for _ in range(6000 * (GENERATION != '1')): {how}")
    site = Site(start, tmp_path, "app:asgi", *ADDRESSES["shared"], *QUICK, "--loop", loop, "--log-level", "debug", code=code)
    before = site.workers()
    pending = site.begin("reload")
    new = eventually(
        lambda: [row["pid"] for row in site.rows() if row["state"] == "booting" and row["age_s"] > 0.5], "the canary boots"
    )
    os.kill(new[0], signal.SIGTERM)
    assert "its end was requested; nothing was changed" in pending.answer["error"]["message"]
    eventually(lambda: not exists(new[0]), "the canary has exited", deadline=30)
    eventually(lambda: site.workers() == before, site.workers)  # the master notices the exit a moment later
    assert "lifespan" not in site.command.stderr

"""State handed over in an upgrade: exported, written as JSON, read, and adopted."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from forkserve.base import handover, privileges
from forkserve.base.errors import ConfigError
from forkserve.base.handover import InheritedFd
from forkserve.base.records import dump, load, record
from forkserve.config.settings import Settings
from forkserve.prefork.control.session import ClientLimits, RunningRequest, Session
from forkserve.prefork.control.wire import Request
from forkserve.prefork.ipc.channel import Channel
from forkserve.prefork.ipc.codec import encode
from forkserve.prefork.ipc.messages import Ready, ShowFault
from forkserve.prefork.policy.actions import Fork, ServeOn
from forkserve.prefork.policy.pool import Phase, Pool
from forkserve.prefork.policy.states import Member, PoolLimits, State
from forkserve.prefork.system.listeners import Addresses, Listeners, ListenerState

T = TypeVar("T")


def handed_over(state: T) -> T:
    """Return a record after encoding and decoding."""
    return handover.decode(handover.encode(state), type(state))


@record
class Inner:
    deep: Sequence[InheritedFd]


@record
class Outer:
    one: InheritedFd
    more: Sequence[Inner]
    no: int


@record
class Several:
    listeners: Sequence[ListenerState]


def listeners_handed_over(before: Listeners) -> Sequence[ListenerState]:
    return handed_over(Several(before.export())).listeners


@record
class Empty:
    """A record without fields."""


def test_descriptors_are_found_at_any_depth() -> None:
    state = Outer(InheritedFd(7), [Inner([InheritedFd(5), InheritedFd(3)])], 8)
    data = handover.encode(state)
    assert json.loads(data)["descriptors"] == [7, 5, 3]
    assert handover.decode(data, Outer) == state


def test_another_version_is_refused() -> None:
    other = json.dumps({**json.loads(handover.encode(Empty())), "version": 99}).encode()
    expected = f"hands over in version 99 of its state, and this forkserve takes version {handover.VERSION}"
    with pytest.raises(ConfigError, match=expected):
        handover.decode(other, Empty)


def test_incomplete_state_is_refused() -> None:
    data = handover.encode(Inner([]))
    with pytest.raises(ConfigError, match="hands over what cannot be read: one is missing: restart the server instead"):
        handover.decode(data, Outer)


def test_unknown_and_missing_fields_are_accepted() -> None:
    member = Member(3, 1, 2, State.READY, 10.0, 30.0, pid=99)
    found = {**dump(member), "invented": 1}
    del found["renewed"]
    assert dump(load(Member, found)) == dump(member)


@pytest.mark.parametrize("preload", [False, True])
def test_an_adopted_pool_continues_unchanged(*, preload: bool) -> None:
    pool = Pool(2, PoolLimits(), lambda: 0.0, preload=preload)
    pids = iter(range(100, 200))

    def settle(one: Pool, now: float) -> None:
        for _ in range(4):
            for action in one.plan(now):
                if isinstance(action, Fork):
                    one.reports.forked(action.member.ident, next(pids))
                    one.reports.ready(action.member.ident, now)

    settle(pool, 1.0)
    pool.want(3)
    settle(pool, 2.0)
    pool.exited(pool.members.workers()[0].ident, 3.0, code=1, signal=None, why="it fell over")
    settle(pool, 4.0)
    pool.exited(pool.members.workers()[0].ident, 5.0, code=1, signal=None)
    pool.plan(5.0)
    assert not pool.has_pending_actions

    again = Pool(7, PoolLimits(), lambda: 0.0, preload=preload)
    again.adopt(handed_over(pool.export()), 5.2)
    shown = [[dump(member) | {"since": 0.0} for member in one.members.workers() + one.members.molds()] for one in (pool, again)]
    assert shown[0] == shown[1]
    assert (again.wanted, again.generations.committed, again.phase, again.departures.kept) == (3, 1, Phase.SERVING, range(1, 4))
    assert [again.members.last_exit(slot) for slot in (1, 2)] == [pool.members.last_exit(slot) for slot in (1, 2)]
    assert again.degraded
    assert again.plan(5.2) == again.plan(5.2) == []  # the slot still backs off
    assert [member.since for member in again.members.workers() if member.exists] == [5.2, 5.2]
    settle(again, 9.0)
    assert all(member.state is State.READY for member in again.members.workers())
    again.want(4)
    settle(again, 9.0)
    assert again.members.workers()[-1].ident > max(member.ident for member in pool.members.workers())


def test_lingering_and_spent_workers_are_handed_over() -> None:
    """Lingering workers, spent workers, and the room for an empty slot are kept."""
    pool = Pool(3, PoolLimits(surge=1, lingering=0), lambda: 0.0)
    while pool.phase is Phase.FIRST_BOOT:
        for action in pool.plan(1.0):
            if isinstance(action, Fork):
                pool.reports.forked(action.member.ident, 100 + action.member.ident)
                pool.reports.ready(action.member.ident, 1.0)
    first, *others = pool.members.workers()
    pool.want(1)
    pool.plan(2.0)
    for member in others:
        pool.reports.lingering(member.ident)
    assert pool.reports.spent(first.ident, full=True)
    forked = pool.plan(3.0)
    for action in forked:
        assert isinstance(action, Fork)
        pool.reports.forked(action.member.ident, 200)

    again = Pool(1, PoolLimits(surge=1, lingering=0), lambda: 0.0)
    again.adopt(handed_over(pool.export()), 4.0)
    assert [one.lingering for one in again.members.workers()] == [False, False, True, True]
    old, booting = again.members.workers()[:2]
    assert (old.spent, old.full, old.lifted) == (True, True, False)
    again.exited(booting.ident, 5.0, code=3, signal=None)
    plan = again.plan(5.0)
    assert ServeOn(old) in plan
    again.exited(old.ident, 6.0, code=None, signal=9)
    assert any(isinstance(one, Fork) for one in plan + again.plan(6.0)), "there is room beside the draining workers"


def test_a_channel_continues_in_the_middle_of_a_frame() -> None:
    left, right = socket.socketpair()
    frame = encode(Ready())
    right.send(frame + frame[:5])
    before = Channel(left)
    assert before.receive() == [Ready([])]
    right.setblocking(False)
    while not before.unsent:
        before.send(ShowFault("x" * 50000))
    found = handed_over(before.export())
    left.detach()

    after = Channel.adopt(found)
    other = Channel(right, of_child=True)
    right.send(frame[5:])
    assert after.receive() == [Ready([])]
    received = other.receive()
    while after.unsent:
        after.flush()
        received += other.receive()
    assert received == [ShowFault("x" * 50000)] * len(received)
    after.close()
    other.close()


def test_a_control_session_continues_in_the_middle_of_a_line() -> None:
    left, right = socket.socketpair()
    before = Session(left, ClientLimits())
    right.send(b'{"v": 1}\n{"v"')
    before.receive()
    before.open.add(RunningRequest(Request("upgrade", id=[1]), 12.5, "half"))
    found = handed_over(before.export())
    left.detach()

    after = Session.adopt(found, ClientLimits())
    assert after.next_line() == b'{"v": 1}'
    right.send(b": 2}\n")
    after.receive()
    assert after.next_line() == b'{"v": 2}'
    (running,) = after.open
    assert (running.request, running.deadline, running.progress) == (Request("upgrade", id=[1]), 12.5, "half")
    after.close()
    right.close()


@pytest.mark.parametrize("committed", [True, False])
def test_listeners_are_kept_by_their_written_or_bound_address(tmp_path: Path, *, committed: bool) -> None:
    one, two, three = (f"unix:{tmp_path / name}" for name in ("one", "two", "three"))
    before = Listeners(bind=[one, "127.0.0.1:0", two], base_port=0)
    old_addresses = Addresses(bind=(one, "127.0.0.1:0", two), base_port=0)
    before.open(2, {})
    found = listeners_handed_over(before)
    port = next(listener.port for listener in before if listener.slot is None and listener.port)
    ports = [before.port(slot, 1) for slot in (1, 2)]
    for listener in before:
        listener.sock.detach()

    after = Listeners(bind=[f"127.0.0.1:{port}", f"unix:{tmp_path}/./one", three], base_port=0)
    assert after.adopt(found, range(1, 4), (1, 2), old_addresses) is None

    def addresses(slot: int, generation: int) -> set[str]:
        return {listener.address("http").removeprefix("http://") for listener in after.for_slot(slot, generation)}

    shared = {one, f"127.0.0.1:{port}"}
    assert [after.port(slot, generation) for generation in (1, 2) for slot in (1, 2)] == ports * 2
    assert addresses(1, 1) == shared | {two, f"127.0.0.1:{ports[0]}"}
    assert addresses(3, 2) == shared | {three, f"127.0.0.1:{after.port(3, 2)}"}
    assert addresses(3, 1) == shared | {two}
    after.open_slots(range(1, 4))  # for workers that are forked before the commit
    assert after.port(3, 1)

    now = 2 if committed else 1
    assert after.settle(now, 2) is not committed
    left, stays = ("two", "three") if committed else ("three", "two")
    assert addresses(1, 3 - now) == shared | {f"unix:{tmp_path / left}", f"127.0.0.1:{ports[0]}"}
    assert after.close_unused(now, [(1, 3 - now)], lambda _: False, 1.0, 30.0) is None
    assert (tmp_path / left).exists()  # a worker accepts there
    assert after.close_unused(now, [], lambda _: True, 2.0, 30.0) == 32.0
    assert after.close_unused(now, [], lambda _: True, 31.0, 30.0) is None
    assert (tmp_path / left).exists()  # no worker accepts there, but a front end sends requests there
    if committed:
        after.close_unused(now, [], lambda _: True, 32.0, 30.0)  # the front end does not stop
    else:
        after.close_unused(now, [], lambda _: False, 3.0, 30.0)
    assert [(tmp_path / name).exists() for name in ("one", left, stays)] == [True, False, True]
    after.open_slots(range(1, 5))
    assert addresses(4, 7) == addresses(4, now) == shared | {f"unix:{tmp_path / stays}", f"127.0.0.1:{after.port(4, now)}"}
    after.close_all()
    assert not (tmp_path / "one").exists()


def test_all_old_listeners_are_kept_if_a_new_one_cannot_be_opened(tmp_path: Path) -> None:
    old_addresses = Addresses(bind=(f"unix:{tmp_path / 'one'}",), base_port=0)
    before = Listeners(bind=old_addresses.bind, base_port=0)
    before.open(1, {})
    found = listeners_handed_over(before)
    for listener in before:
        listener.sock.detach()
    (tmp_path / "file").touch()

    after = Listeners(bind=[f"unix:{tmp_path / 'two'}", f"unix:{tmp_path / 'file'}"])
    assert "is not a socket" in str(after.adopt(found, range(1, 2), (1, 2), old_addresses))
    assert not (tmp_path / "two").exists()
    assert len(after.for_slot(1, 1)) == 2
    assert after.for_slot(1, 2) == after.for_slot(1, 1), "the next reload has the generation of the failed one"
    after.close_all()


def test_the_command_line_of_the_process_is_found(tmp_path: Path) -> None:
    code = "import forkserve.prefork.master.upgrade.program as p; one = p.Program.of_this_process(); print(one.arguments, one.directory)"
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    script = tmp_path / "script"
    script.write_text(f"#!{python}\n{code}\n")
    script.chmod(0o755)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    root, env = Path(__file__).parents[3], {"PYTHONPATH": f"{Path(__file__).parents[2]}:{':'.join(sys.path)}", "PWD": str(link)}

    def run_program(*line: object, cwd: Path = tmp_path) -> str:
        return subprocess.run(list(map(str, line)), env=env, cwd=cwd, capture_output=True, text=True, check=True).stdout.strip()

    assert run_program(script, "-x") == f"{[str(script), '-x']} {link}"
    assert run_program("./script") == f"{[str(link / 'script')]} {link}".replace("script']", "./script']")
    # An explicit Python is kept.
    assert run_program(sys.executable, "-Wignore", script) == f"{[sys.executable, '-Wignore', str(script)]} {link}"
    assert run_program(sys.executable, script, cwd=root) == f"{[sys.executable, str(script)]} {root}"
    assert run_program(sys.executable, "-c", code) == f"{[sys.executable, '-c', code]} {link}"


def test_a_handed_over_account_needs_no_lookup() -> None:
    settings = Settings(user="nobody-of-that-name")
    with pytest.raises(ConfigError, match="there is no user"):
        privileges.account(settings)
    ours = privileges.Account(os.geteuid(), os.getegid(), (os.getegid(),), "nobody-of-that-name", "/")
    found = handed_over(privileges.KnownAccount((settings.user, None, True), ours))
    privileges.adopt(found)
    try:
        assert privileges.account(settings) == (ours if os.geteuid() == 0 else None)
        assert privileges.export(settings) == found
    finally:
        privileges._known.clear()
        privileges._account.cache_clear()

"""Listeners with real sockets."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forkserve.base.errors import ListenError
from forkserve.prefork.system.inherited import LISTEN_FDS_START as FIRST
from forkserve.prefork.system.listeners import Listeners
from tests.integration.prefork.prefork_helpers import connects
from tests.ports import free_ports

Make = Callable[..., Listeners]


@pytest.fixture
def make() -> Iterator[Make]:
    """A function that opens listeners; `inherit` is a socket passed by a service manager."""
    made: list[Listeners] = []
    third = os.dup(FIRST) if os.path.exists(f"/proc/self/fd/{FIRST}") else None

    def make(slots: int = 0, *, inherit: socket.socket | None = None, **options: Any) -> Listeners:
        environ = options.pop("environ", {})
        if inherit is not None:
            descriptor = inherit.detach()
            if descriptor != FIRST:
                os.dup2(descriptor, FIRST)
                os.close(descriptor)
            environ = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
        made.append(Listeners(**options))
        made[-1].open(slots, environ)
        return made[-1]

    yield make
    for listeners in made:
        listeners.close_all()
    if third is not None:
        os.dup2(third, FIRST)
        os.close(third)


def test_each_slot_has_its_port_and_the_shared_listeners(make: Make) -> None:
    base = free_ports(2)
    listeners = make(2, base_port=base, bind=["127.0.0.1:0"])

    assert [(one.slot, one.port) for one in listeners][:2] == [(1, base), (2, base + 1)]
    assert [one.slot for one in listeners.for_slot(2, 1)] == [2, None]
    assert next(iter(listeners)).describe("http") == f"http://127.0.0.1:{base} (worker 1)"
    assert not any(one.sock.getblocking() for one in listeners)


def test_base_port_0_gives_each_slot_a_free_port_that_it_keeps(make: Make) -> None:
    listeners = make(2, base_port=0)
    ports = [one.port for one in listeners]
    listeners.open_slots([1, 2, 3])

    assert [one.port for one in listeners][:2] == ports
    assert len({one.port for one in listeners}) == 3


def test_closing_a_slot_frees_its_port(make: Make) -> None:
    first = free_ports(2)
    second = first + 1
    listeners = make(2, base_port=first)
    listeners.close(2)

    assert connects(("127.0.0.1", first))
    assert not connects(("127.0.0.1", second))


def test_new_slots_open_all_their_ports_or_none(make: Make) -> None:
    base = free_ports(3)
    listeners = make(1, base_port=base)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", base + 2))
        taken.listen()

        with pytest.raises(ListenError, match=f"port {base + 2} is already in use"):
            listeners.open_slots([1, 2, 3])
    assert [one.slot for one in listeners] == [1]
    assert not connects(("127.0.0.1", base + 1))


def test_a_port_in_use_is_refused_with_the_pid_that_holds_it(make: Make) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(ListenError) as caught:
            make(bind=[f"127.0.0.1:{port}"])
    assert f"port {port} is already in use by " in str(caught.value)
    assert f"(pid {os.getpid()})" in str(caught.value)


def test_a_failure_closes_the_listeners_opened_before(make: Make) -> None:
    port = free_ports(1)
    with pytest.raises(ListenError, match="not-a-host"):
        make(bind=[f"127.0.0.1:{port}", "not-a-host.invalid:80"])

    assert not connects(("127.0.0.1", port))


def test_a_port_above_65535_is_refused(make: Make) -> None:
    with pytest.raises(ListenError, match="65536"):
        make(2, base_port=65535)


def test_an_ipv6_listener_is_described_with_brackets(make: Make) -> None:
    (listener,) = make(bind=["[::1]:0"])

    assert listener.describe("http") == f"http://[::1]:{listener.port}"


def test_both_wildcard_addresses_can_use_the_same_port(make: Make) -> None:
    port = free_ports(1)

    assert len(list(make(bind=[f"0.0.0.0:{port}", f"[::]:{port}"]))) == 2


def test_a_unix_socket_has_its_mode_and_is_removed(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "s"
    listeners = make(bind=[f"unix:{path}"], socket_mode=0o600)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.describe("http") for one in listeners] == [f"unix:{path}"]
    assert connects(str(path))
    listeners.close(None)
    assert not path.exists()


def test_a_stale_unix_socket_is_replaced(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    make(bind=[f"unix:{path}"])

    assert connects(str(path))


def test_a_live_unix_socket_is_refused(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        with pytest.raises(ListenError, match="another server"):
            make(bind=[f"unix:{path}"])

        assert connects(str(path))


def test_a_file_that_is_no_socket_is_refused_and_kept(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(ListenError, match="not a socket"):
        make(bind=[f"unix:{path}"])

    assert path.read_text() == "precious"


def test_a_replaced_socket_file_is_not_removed(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "s"
    listeners = make(bind=[f"unix:{path}"])
    path.unlink()
    path.write_text("another's")
    listeners.close(None)

    assert path.exists()


def test_an_abstract_socket_can_be_bound(make: Make) -> None:
    name = f"@forkserve-test-{os.getpid()}"
    listeners = make(bind=[f"unix:{name}"])

    assert [one.describe("http") for one in listeners] == [f"unix:{name}"]
    assert connects("\0" + name[1:])


def test_a_passed_descriptor_is_adopted(make: Make) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    (listener,) = make(bind=[f"fd://{sock.detach()}"])

    assert listener.adopted
    assert listener.describe("http") == f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("descriptor", [99999, 2])
def test_a_passed_descriptor_that_is_no_socket_is_refused(make: Make, descriptor: int) -> None:
    with pytest.raises(ListenError, match=f"descriptor {descriptor}"):
        make(bind=[f"fd://{descriptor}"])


def test_an_inherited_socket_is_shared(make: Make) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    (listener,) = make(inherit=sock)

    assert (listener.slot, listener.adopted, listener.port) == (None, True, port)
    assert not os.get_inheritable(listener.sock.fileno())


def test_an_inherited_socket_is_used_for_the_matching_slot(make: Make) -> None:
    base = free_ports(2)
    sock = socket.create_server(("127.0.0.1", base + 1))
    listeners = make(2, inherit=sock, base_port=base)

    assert [(one.slot, one.port, one.adopted) for one in listeners] == [
        (1, base, False),
        (2, base + 1, True),
    ]


def test_an_inherited_unix_socket_is_used_for_its_bind_and_is_not_removed(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "s"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    listeners = make(inherit=sock, bind=[f"unix:{path}"])

    assert [one.adopted for one in listeners] == [True]
    listeners.close_all()
    assert path.exists()


@pytest.mark.parametrize("written", ["s", "./s", "link/s", "{directory}/link/s"])
def test_an_inherited_unix_socket_matches_any_spelling_of_its_path(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    sock.listen()
    monkeypatch.chdir(tmp_path)
    listeners = make(inherit=sock, bind=[f"unix:{written.format(directory=tmp_path)}"])

    assert [one.adopted for one in listeners] == [True]


def test_sockets_passed_to_another_process_are_ignored(make: Make) -> None:
    assert list(make(environ={"LISTEN_FDS": "1", "LISTEN_PID": "1"})) == []


def test_a_malformed_listen_fds_is_refused(make: Make) -> None:
    with pytest.raises(ListenError, match="LISTEN_FDS"):
        make(environ={"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid())})

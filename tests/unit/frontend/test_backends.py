"""The addresses that front ends connect to, and writing of the upstream file."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from forkserve.base.files import write_whole
from forkserve.config import load as config
from forkserve.config.addresses import parse_address
from forkserve.config.settings import Settings
from forkserve.config.table import TABLE
from forkserve.frontend.backends import Backend, from_settings, from_status, on_machines, with_spare
from forkserve.frontend.config import FrontendConfig
from forkserve.frontend.nginx import render_upstream


def settings(**given: object) -> Settings:
    return config.from_keywords(app="shop:app", **given).settings


def status(**given: object) -> dict[str, object]:
    """Return the status of a server with three ports and a shared address."""
    listeners = [{"address": f"http://0.0.0.0:{9000 + slot}", "slot": slot, "down": slot > 1} for slot in (3, 1, 2)]
    return {"name": "shop", "listeners": [{"address": "unix:/run/shop.sock", "slot": None, "down": False}, *listeners], **given}


def test_the_backends_of_a_running_server_are_its_slots_in_order() -> None:
    scheme, found = from_status(status())

    assert scheme == "http"
    assert [(str(one.address), one.slot, one.down) for one in found] == [
        ("127.0.0.1:9001", 1, False),
        ("127.0.0.1:9002", 2, True),
        ("127.0.0.1:9003", 3, True),
    ]


def test_a_running_server_without_ports_has_its_shared_address() -> None:
    addresses = ("unix:@x", "https://[::]:8000", "unix:/run/shop.sock")
    listeners = [{"address": address, "slot": None, "down": False} for address in addresses]

    scheme, found = from_status(status(listeners=listeners))
    assert (scheme, [(str(one.address), one.slot) for one in found]) == ("https", [("[::1]:8000", None)])
    for more, scheme in (({"scheme": "https"}, "https"), ({"scheme": "http"}, "http"), ({}, "http")):
        assert from_status(status(listeners=[{**listeners[2], **more}]))[0] == scheme
    with pytest.raises(ValueError, match="no address that a front end could connect to"):
        from_status(status(listeners=listeners[:1]))


def test_a_server_on_all_interfaces_is_reached_on_loopback() -> None:
    assert str(from_settings(settings(bind="0.0.0.0:8000"))[0].address) == "127.0.0.1:8000"
    assert str(from_settings(settings(host="::", base_port=9000))[0].address) == "[::1]:9000"


def test_a_slot_that_is_down_here_is_not_down_on_other_machines() -> None:
    here = (Backend(parse_address("127.0.0.1:9000"), 1, down=True),)

    assert not on_machines(here, ["a"])[0].down
    text = render_upstream(FrontendConfig(name="x", settings=settings(), backends=(*here, *here)))
    assert text.count("server 127.0.0.1:9000 max_fails=0 down;") == 2


def test_backends_include_the_slots_up_to_max_workers() -> None:
    spare = settings(base_port=9000, workers=2, max_workers=4)
    running = from_settings(settings(base_port=9000, workers=2))

    assert [(one.slot, one.address.port) for one in with_spare(running, spare)] == [(1, 9000), (2, 9001), (3, 9002), (4, 9003)]
    assert with_spare(running, settings(base_port=9000, workers=2)) == running
    assert with_spare(running, settings(base_port=0, workers=2, max_workers=4)) == running


def test_blanks_in_balance_are_normalized() -> None:
    assert TABLE["balance"].kind.read(" hash  $cookie_a$http_b ") == "hash $cookie_a$http_b"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """A user writes to /dev/null for the check only, and the device must stay a device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert write_whole(str(pipe), "text")
    assert os.read(reader, 100) == b"text"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_file_is_replaced_atomically_and_only_if_changed(tmp_path: Path) -> None:
    real, link = tmp_path / "real.conf", tmp_path / "link.conf"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    with real.open() as before:
        assert write_whole(str(link), "new")
        assert before.read() == "old"

    assert (link.is_symlink(), real.read_text(), real.stat().st_mode & 0o777) == (True, "new", 0o640)
    number = real.stat().st_ino
    assert not write_whole(str(link), "new")
    assert real.stat().st_ino == number
    assert sorted(tmp_path.iterdir()) == [link, real]


def test_a_process_killed_during_a_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    """A limit on the file size kills the process in the middle of the write."""
    path = tmp_path / "upstream.conf"
    code = "import resource, signal, sys; from forkserve.base.files import write_whole; signal.signal(signal.SIGXFSZ, signal.SIG_DFL);"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)); write_whole(sys.argv[1], 'x' * int(sys.argv[2]))"
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}  # it would write a file as well
    for size, ended in ((4000, 0), (500_000, -signal.SIGXFSZ)):
        done = subprocess.run([sys.executable, "-c", code, str(path), str(size)], env=env, check=False)
        assert done.returncode == ended
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "x" * 4000

"""SyslogFile: the messages that a daemon gets."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from forkserve.base.errors import ConfigError
from forkserve.base.logforms import SEPARATOR
from forkserve.base.syslog import SyslogFile


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a daemon, at `log`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "log"))
        sock.setblocking(False)
        yield sock


def messages(daemon: socket.socket, number: int) -> list[str]:
    """Return severities and texts."""
    form = rf"<(\d+)>\w{{3}} [ \d]\d \d\d:\d\d:\d\d web\[{os.getpid()}\]: ((?s:.*))"
    found = [re.fullmatch(form, daemon.recv(1 << 16).decode()) for _ in range(number)]
    with pytest.raises(BlockingIOError):
        daemon.recv(1)
    return [f"{int(one[1]) & 7}{one[2]}" for one in found if one]


def test_records_have_their_severity_and_their_lines(tmp_path: Path, daemon: socket.socket) -> None:
    log = SyslogFile("--error-logfile", f"syslog:web@{tmp_path}/log", of_ours=True)
    log.write(f"<3>one{SEPARATOR}    two\nplain \x1b\n<4>three\n".encode())

    assert messages(daemon, 3) == ["3one\n    two", r"6plain \x1b", "4three"]
    log.close()


def test_text_of_others_sets_no_severity(tmp_path: Path, daemon: socket.socket) -> None:
    log = SyslogFile("--access-logfile", f"syslog:web@{tmp_path}/log")
    log.write(f"<0>one{SEPARATOR}two\n".encode())

    assert messages(daemon, 1) == [r"6<0>one\x1etwo"]
    log.close()


@pytest.mark.parametrize("text", ["x" * 20_000, "ü" * 9_000, "\x1b" * 9_000])
def test_a_long_record_is_several_messages_of_one_severity(tmp_path: Path, daemon: socket.socket, text: str) -> None:
    log = SyslogFile("--error-logfile", f"syslog:web@{tmp_path}/log", of_ours=True)
    log.write(f"<3>{text}\n<4>end\n".encode())

    got: list[bytes] = []
    while True:  # the daemon's queue is short
        try:
            got.append(daemon.recv(1 << 16))
        except BlockingIOError:
            if log.flush():
                break
    parts = [one.decode().partition("]: ")[2] for one in got]
    assert "".join(parts[:-1]) == "".join(c if c.isprintable() else "\\x1b" for c in text)
    assert [int(one[1:3]) & 7 for one in got] == [3] * (len(got) - 1) + [4]
    assert all(len(one) < 8100 for one in got)
    log.close()


def test_lines_wait_for_a_daemon_that_is_gone(tmp_path: Path, daemon: socket.socket) -> None:
    log = SyslogFile("--error-logfile", f"syslog:web@{tmp_path}/log", of_ours=True)
    daemon.close()
    (tmp_path / "log").unlink()
    log.write(b"<3>one\n")
    assert not log.flush()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(tmp_path / "log"))
        again.setblocking(False)
        assert log.flush()
        assert messages(again, 1) == ["3one"]
    log.close()


def test_there_must_be_a_daemon_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--error-logfile: cannot reach the syslog socket .*/log: No such file"):
        SyslogFile("--error-logfile", f"syslog:web@{tmp_path}/log")

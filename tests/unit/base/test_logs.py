"""The format of log lines, and the log files."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forkserve.base import logfile, logs
from forkserve.base.errors import ConfigError
from forkserve.base.logs import logger, printable
from forkserve.config.settings import Settings

HEAD = (
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [+-]\d{4} "
    rf"\[{os.getpid()}\] \[(\w+)\] ([^:]+): (.*)"
)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """The error log of this process, set to a file."""
    path = tmp_path / "error.log"
    logs.configure(Settings(error_logfile=str(path), access_logfile=str(tmp_path / "access.log")))
    yield path
    for descriptor in logs.descriptors():
        os.close(descriptor)
    logs.configure(Settings())
    logger.handlers.clear()
    logger.propagate = True


def lines(path: Path) -> list[tuple[str, ...]]:
    """Return level, process and text of each record; every line must begin a record or be indented."""
    matches = [re.fullmatch(HEAD + r"(?:\n    .*)*", text) for text in re.split(r"\n(?! )", path.read_text().removesuffix("\n"))]

    assert all(matches), path.read_text()
    return [(match[1], match[2], match[0].partition(": ")[2]) for match in matches if match]


def test_a_line_has_time_process_and_message(log: Path) -> None:
    logger.info("hello %s", "there")
    logger.debug("not logged")
    logs.identify("worker 3", 7)
    logger.warning("from a worker")

    assert lines(log) == [("INFO", "master", "hello there"), ("WARNING", "worker 3 gen 7", "from a worker")]


def test_a_traceback_is_a_part_of_its_record(log: Path) -> None:
    logs.identify("worker 1", 1)
    error = RuntimeError("one\ntwo \x1b[31m")
    try:
        raise error
    except RuntimeError:
        logger.exception("it failed")

    ((level, who, text),) = lines(log)
    first, second, *_, last = text.split("\n")
    assert (level, who) == ("ERROR", "worker 1 gen 1")
    assert (first, second, last) == ("it failed", "    Traceback (most recent call last):", r"    two \x1b[31m")


def test_control_bytes_never_reach_the_log(log: Path) -> None:
    logger.info("a\x1b[2Jb\x00\r\x85\u2028\u202ec\udc80%s", "\x07")

    assert lines(log)[0][2] == r"a\x1b[2Jb\x00\r\x85\u2028\u202ec\udc80\x07"


def test_a_newline_in_a_message_does_not_begin_a_record(log: Path) -> None:
    logger.info("text\nforged")

    assert [text for _, _, text in lines(log)] == ["text\n    forged"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ünïcode", "plain ünïcode"),
        ("\x1b\n\t\x7f", r"\x1b\n\t\x7f"),
        (b"GET /\xff\x00", r"GET /\xff\x00"),
        ("", ""),
    ],
)
def test_control_characters_are_escaped(text: str | bytes, expected: str) -> None:
    assert expected == printable(text)


def test_a_wrong_logging_call_is_logged_and_not_raised(log: Path) -> None:
    class Silent:
        def __str__(self) -> str:
            raise RuntimeError

        __repr__ = __str__

    for message, argument in (("%d", "text"), ("%s", Silent())):
        record = logger.makeRecord("forkserve", 20, "f", 1, message, (argument,), None)
        logger.handlers[0].handle(record)

    assert "'%d' % ('text',)" in log.read_text()
    assert "a log record could not be formatted" in log.read_text()


def test_a_log_that_cannot_be_written_raises_no_error(log: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    for descriptor in logs.descriptors():
        os.dup2(full, descriptor, inheritable=False)
    os.close(full)

    logger.info("lost")


def test_the_level_trace_can_be_logged(log: Path) -> None:
    logs.set_level("trace")
    logger.log(logs.TRACE, "fine")

    assert lines(log) == [("TRACE", "master", "fine")]


def test_a_moved_file_is_reopened_at_the_same_descriptor(log: Path) -> None:
    before = logs.descriptors()
    logger.info("one")
    log.rename(log.with_suffix(".1"))
    logger.info("two")
    logs.reopen()
    logger.info("three")

    assert [text for _, _, text in lines(log.with_suffix(".1"))] == ["one", "two"]
    assert [text for _, _, text in lines(log)] == ["three"]
    assert before == logs.descriptors()
    assert not any(os.get_inheritable(one) for one in before)


def test_all_descriptors_of_the_master_are_closed(log: Path) -> None:
    """Also those of a path that comes twice, and of no path."""
    before = len(os.listdir("/proc/self/fd"))
    files = [os.open(log, os.O_WRONLY | os.O_APPEND) for _ in range(3)]
    logs.take([str(log), str(log)], files)

    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_was_not_moved_is_not_reopened(log: Path) -> None:
    access = logs.access_log()
    assert access is not None
    inode = os.fstat(access.descriptor).st_ino

    logs.reopen()

    assert inode == os.fstat(access.descriptor).st_ino


def test_a_file_that_cannot_be_reopened_is_kept(log: Path) -> None:
    log.rename(log.parent / "moved")
    log.mkdir()
    logs.reopen()

    assert "cannot reopen the log file" in (log.parent / "moved").read_text()


def test_the_access_log_is_written_at_once(log: Path) -> None:
    access = logs.access_log()
    assert access is not None
    access.write(b"one\ntwo\n")

    assert (log.parent / "access.log").read_text() == "one\ntwo\n"


def test_a_log_file_that_cannot_be_opened_is_a_usage_error() -> None:
    with pytest.raises(ConfigError, match="cannot write the log file /no/such: No such file"):
        logs.configure(Settings(error_logfile="/no/such"))


CAPTURING = """
import os, sys
from forkserve.base import logfile, logs
from forkserve.config.settings import Settings
logs.configure(Settings(error_logfile=sys.argv[1], capture_output=True))
os.write(1, b"of the master\\n")
logs.identify("worker 1", 1)
os.write(1, b"one\\n")
os.rename(sys.argv[1], sys.argv[1] + ".1")
logs.reopen()
os.write(2, b"two\\n")
"""


def test_output_of_workers_is_captured_in_the_error_log(tmp_path: Path) -> None:
    """The output follows the rotation of the file."""
    log = tmp_path / "log"

    done = subprocess.run([sys.executable, "-c", CAPTURING, str(log)], capture_output=True, check=True)

    assert done.stdout == b"of the master\n"
    assert (Path(f"{log}.1").read_text(), log.read_text()) == ("one\n", "two\n")


class TestLogConfig:
    """The user's configuration of the logging module."""

    @pytest.mark.usefixtures("log")
    def test_a_json_file_configures_logging(self, tmp_path: Path) -> None:
        path = tmp_path / "log.json"
        path.write_text(
            """{"version": 1,
            "filters": {"who": {"()": "forkserve.base.logs.Identity"}},
            "formatters": {"mine": {"format": "MINE %(who)s %(message)s"}},
            "handlers": {"mine": {"class": "logging.FileHandler", "filename": "%s",
                                  "formatter": "mine", "filters": ["who"]}},
            "loggers": {"forkserve": {"handlers": ["mine"]}}}""".replace("%s", str(tmp_path / "mine"))
        )
        logs.configure(Settings(log_config=str(path)))
        logger.info("hello")
        mine = logger.handlers[0]
        mine.close()

        assert (tmp_path / "mine").read_text() == "MINE master hello\n"
        assert isinstance(mine, logging.FileHandler)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("log.json", "{"),
            ("log.json", "[]"),
            ("log.json", '{"version": 9}'),
            ("log.ini", "nonsense"),
            ("log.ini", ""),
            ("log.json", '{"version": 1, "handlers": {"x": {"class": "no.such"}}}'),
        ],
    )
    @pytest.mark.usefixtures("log")
    def test_a_broken_file_is_a_usage_error(self, tmp_path: Path, name: str, content: str) -> None:
        (tmp_path / name).write_text(content)

        with pytest.raises(ConfigError, match=r"--log-config .*log\.(json|ini): "):
            logs.configure(Settings(log_config=str(tmp_path / name)))


NOBODY = (65534, 65534)


def test_an_output_file_is_opened_once_and_reopened_with_the_logs(log: Path) -> None:
    path = log.with_name("out")
    file = logs.open_file(str(path), None)

    assert file is logs.open_file(str(path), None)
    file.write(b"one\n")
    path.rename(log.with_name("out.1"))
    logs.reopen()
    file.write(b"two\n")
    assert (log.with_name("out.1").read_text(), path.read_text()) == ("one\n", "two\n")
    logs.close_files()
    assert file.descriptor not in logs.descriptors()


def test_a_created_file_gets_its_owner_also_after_reopening(tmp_path: Path) -> None:
    owner = NOBODY if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    path = tmp_path / "log"
    file = logfile.LogFile.open(str(path), owner)
    assert (path.stat().st_uid, path.stat().st_gid) == owner

    path.unlink()
    file.reopen()
    os.close(file.descriptor)

    assert (path.stat().st_uid, path.stat().st_gid) == owner


def test_a_device_keeps_its_owner() -> None:
    before = os.stat("/dev/null").st_uid
    os.close(logfile.LogFile.open("/dev/null", NOBODY).descriptor)

    assert before == os.stat("/dev/null").st_uid


REDIRECTED = """
import os
from forkserve.base import logfile, logs
from forkserve.config.settings import Settings

logs.configure(Settings(access_logfile="-"))
logs.redirect(2, logs.open_file("err", None))
os.write(2, b"err\\n")
logs.logger.error("log")
logs.redirect(1, logs.open_file("out", None))
os.write(1, b"out\\n")
logs.access_log().write(b"access\\n")
os.rename("out", "out.1")
logs.reopen()
os.write(1, b"new\\n")
logs.detach()
logs.logger.error("nowhere")
logs.access_log().write(b"nowhere\\n")
"""


def test_a_redirected_stream_does_not_move_the_logs(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", REDIRECTED], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert ended.stdout == "access\n"
    assert re.fullmatch(".*master: log\n", ended.stderr)
    assert [(tmp_path / name).read_text() for name in ("err", "out.1", "out")] == ["err\n", "out\n", "new\n"]


def test_files_of_the_old_program_are_used_after_an_upgrade(tmp_path: Path) -> None:
    error, access, other = (tmp_path / name for name in ("error", "access", "other"))
    settings = Settings(error_logfile=str(error), access_logfile=str(access))
    logs.configure(settings)
    held = {path: os.dup(descriptor) for path, descriptor in logs.export(settings).items()}
    assert held.keys() == {str(error), str(access)}
    error.rename(tmp_path / "rotated")
    left = os.open(other, os.O_WRONLY | os.O_CREAT)
    assert logs.configure(settings, {**held, str(other): left}) == []
    logs.logger.warning("again")
    assert "again" in error.read_text()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(left)

    gone = Settings(error_logfile="/no/such/log")
    assert logs.configure(gone, {}) == ["cannot write the log file /no/such/log: No such file or directory"]
    logs.configure(Settings())

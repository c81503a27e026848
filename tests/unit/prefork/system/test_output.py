"""The output of workers, from the pipe to its sink; the test itself writes to the pipe."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkserve.base import logs
from forkserve.base.errors import ConfigError
from forkserve.config.settings import Settings
from forkserve.prefork.system import sinks
from forkserve.prefork.system.output import LONGEST_LINE, PIECE, Outputs
from forkserve.prefork.system.poller import Poller

OUT, ERR = 1, 2


class Loop:
    """Outputs and the loop that reads them; `printing` plays a worker."""

    def __init__(self, **settings: object) -> None:
        self.poller = Poller()
        try:
            self.outputs = Outputs(Settings(**settings), self.poller)  # type: ignore[arg-type]
        except ConfigError:
            self.poller.close()
            raise

    @contextlib.contextmanager
    def printing(self, slot: int = 1) -> Iterator[Callable[[int, bytes], None]]:
        """Yield the write function of a worker; the worker exits at the end."""
        with self.outputs.for_process(f"worker {slot}") as output:
            files = {**output._files, **output._pipes}
            streams = {stream: os.dup(file.descriptor) for stream, file in files.items()}
        try:
            yield lambda stream, data: _write(streams[stream], data)
        finally:
            for descriptor in streams.values():
                os.close(descriptor)

    def turn(self) -> None:
        """Run one turn of the loop."""
        for call in self.poller.wait(time.monotonic() + 0.1):
            call()

    def until(self, look: Callable[[], object]) -> None:
        """Run the loop until the condition holds."""
        end = time.monotonic() + 20
        while not look():
            assert time.monotonic() < end
            self.turn()

    def close(self) -> None:
        """Close the outputs and the poller."""
        self.outputs.close()
        self.poller.close()


def _write(descriptor: int, data: bytes) -> None:
    assert os.write(descriptor, data) == len(data)


Make = Callable[..., Loop]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A function that makes loops; warnings go to the file `log`."""
    logs.configure(Settings(error_logfile=str(tmp_path / "log")))
    before = set(os.listdir("/proc/self/fd"))
    loops: list[Loop] = []

    def begin(**settings: object) -> Loop:
        loops.append(Loop(**settings))
        return loops[-1]

    yield begin
    for loop in loops:
        loop.close()
    assert set(os.listdir("/proc/self/fd")) <= before
    for descriptor in logs.descriptors():
        os.close(descriptor)
    logs.configure(Settings())
    logs.logger.handlers.clear()
    logs.logger.propagate = True


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a syslog daemon, `syslog` in the test's directory."""
    with listening(tmp_path / "syslog") as sock:
        yield sock


def listening(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(path))
    sock.settimeout(20)
    return sock


def test_lines_get_a_prefix_and_the_last_line_may_lack_a_newline(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    loop = make(worker_stdout=str(out), worker_output_prefix=True)
    with loop.printing(7) as write:
        write(OUT, b"one\n\ntw")
        loop.until(lambda: out.read_bytes() == b"worker 7: one\nworker 7: \n")
        write(OUT, b"o\npart")
        loop.until(lambda: b"two\n" in out.read_bytes())
        assert b"part" not in out.read_bytes()
    loop.until(lambda: out.read_bytes().endswith(b"worker 7: two\nworker 7: part\n"))


def test_lines_of_several_workers_do_not_mix(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    loop = make(worker_stdout=str(out), worker_output_prefix=True)
    with loop.printing(1) as one, loop.printing(2) as two:
        for half in (b"first ", b"second\n"):
            one(OUT, half)
            two(OUT, half)
            loop.turn()
    loop.until(lambda: out.read_bytes().count(b"\n") == 2)

    assert sorted(out.read_text().splitlines()) == ["worker 1: first second", "worker 2: first second"]


def test_a_function_gets_each_line_as_text(make: Make) -> None:
    lines: list[str] = []
    loop = make(worker_stdout=lines.append, worker_stderr=lines.append)
    with loop.printing() as write:
        write(OUT, b"pl\xc3\xa4in\nbad \xff\xc3\n")
        write(ERR, b"error\n")
        write(OUT, b"last")
    loop.until(lambda: len(lines) == 4)

    assert lines == ["pläin", r"bad \xff\xc3", "error", "last"]


def test_a_function_that_raises_is_logged_once_and_called_again(make: Make, tmp_path: Path) -> None:
    lines: list[str] = []

    def fail(line: str) -> None:
        lines.append(line)
        raise RuntimeError("no\nroom")

    loop = make(worker_stderr=fail)
    with loop.printing() as write:
        write(ERR, b"one\ntwo\nthree\n")
        loop.until(lambda: len(lines) == 3)

    text = (tmp_path / "log").read_text()
    assert text.count("fail failed for a line of a worker's output") == 1
    assert text.count("Traceback") == 1


def test_long_lines_are_split(make: Make) -> None:
    lines: list[str] = []
    loop = make(worker_stdout=lines.append, worker_output_prefix=True)
    with loop.printing() as write:
        for _ in range(5):
            write(OUT, b"x" * (LONGEST_LINE // 2))
            loop.until(lambda: not has_pending_output(loop))
        write(OUT, b"y\n")
    loop.until(lambda: lines and lines[-1].endswith("y"))

    assert max(map(len, lines)) <= len("worker 1: ") + LONGEST_LINE + PIECE
    assert "".join(line.removeprefix("worker 1: ") for line in lines) == "x" * (LONGEST_LINE // 2 * 5) + "y"


def has_pending_output(loop: Loop) -> bool:
    """Whether a pipe still has data."""
    events = loop.poller.wait(time.monotonic())
    for call in events:
        call()
    return bool(events)


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_every_line_arrives_in_whatever_pieces_it_is_written(chunks: list[bytes]) -> None:
    lines: list[str] = []
    loop = Loop(worker_stdout=lines.append)
    try:
        with loop.printing() as write:
            for chunk in chunks:
                write(OUT, chunk)
                loop.turn() if chunk else None
    finally:
        loop.close()

    *whole, last = b"".join(chunks).split(b"\n")
    expected = [*whole, *([last] if last else [])]
    assert lines == [line.decode("utf-8", "backslashreplace") for line in expected]


def test_a_flood_does_not_starve_another_worker(make: Make) -> None:
    lines: list[str] = []
    loop = make(worker_stdout=lines.append)
    turns = 0
    with loop.printing() as write, loop.printing(2) as other:
        write(OUT, b"\n" * 60000)
        other(OUT, b"me too\n")
        loop.turn()
        assert len(lines) <= PIECE + 1
        loop.until(lambda: "me too" in lines)
        assert len(lines) <= 2 * PIECE + 1
        while len(lines) < 60001:
            loop.turn()
            turns += 1

    assert turns >= 60000 // PIECE - 2


def test_both_streams_to_one_file_keep_their_order(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    loop = make(worker_stdout=str(out), worker_stderr=str(out), worker_output_prefix=True)
    with loop.printing() as write:
        for number in range(100):
            write(OUT if number % 2 else ERR, b"%d\n" % number)
        loop.until(lambda: out.read_bytes().count(b"\n") == 100)

    assert out.read_text() == "".join(f"worker 1: {number}\n" for number in range(100))


def test_a_worker_writes_directly_to_a_file_without_a_prefix(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("before\n")
    loop = make(worker_stdout=str(out))
    with loop.printing() as write:
        write(OUT, b"no end")

    assert out.read_text() == "before\nno end"


def test_a_file_object_is_written_through_its_descriptor(make: Make, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        file.write("first\n")
        loop = make(worker_stdout=file)
    with loop.printing() as write:
        write(OUT, b"then\n")

    assert (tmp_path / "out").read_text() == "first\nthen\n"


@pytest.mark.parametrize("prefix", [False, True])
def test_a_file_that_cannot_be_written_is_refused_at_the_start(make: Make, tmp_path: Path, *, prefix: bool) -> None:
    with (tmp_path / "in").open("w+") as writable, (tmp_path / "in").open() as readable:
        for stream in ("worker_stdout", "worker_stderr"):
            with pytest.raises(ConfigError, match=f"--{stream.replace('_', '-')}: cannot write to .*Bad file descriptor"):
                make(**{"worker_stdout": writable, stream: readable}, worker_output_prefix=prefix)
    with pytest.raises(ConfigError, match=r"cannot write the log file .*/no/such: "):
        make(worker_stdout=str(tmp_path / "no/such"), worker_output_prefix=prefix)


def test_a_pipe_without_a_reader_blocks_the_worker_and_not_the_loop(make: Make) -> None:
    read, write_end = os.pipe()
    with open(write_end, "wb") as file:
        loop = make(worker_stdout=file, worker_output_prefix=True)
    size = 300_000
    with loop.printing() as write:
        worker = threading.Thread(target=lambda: [write(OUT, b"x" * 99 + b"\n") for _ in range(size // 100)])
        worker.start()
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            loop.turn()
        assert worker.is_alive()
        got = bytearray()
        os.set_blocking(read, False)
        while len(got) < size // 100 * 110:
            with contextlib.suppress(BlockingIOError):
                got += os.read(read, 1 << 16)
            loop.turn()
        worker.join()
    os.close(read)

    assert bytes(got) == (b"worker 1: " + b"x" * 99 + b"\n") * (size // 100)


def test_lines_for_a_pipe_that_is_full_for_long_are_lost(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "PATIENCE", 0.1)
    monkeypatch.setattr(sinks, "LAST_WAIT", 0.1)
    read, write_end = os.pipe()
    with open(write_end, "wb") as file:
        loop = make(worker_stdout=file, worker_output_prefix=True)
    with loop.printing() as write:
        worker = threading.Thread(target=lambda: [write(OUT, b"x" * 99 + b"\n") for _ in range(20000)])
        worker.start()
        loop.until(lambda: not worker.is_alive())
        worker.join()
    loop.outputs.close()
    os.close(read)

    line, *others = (tmp_path / "log").read_text().splitlines()
    assert re.search(r"\[WARNING\] master: output of workers to --worker-stdout is lost: nothing can be written", line)
    assert all("lines of workers' output to --worker-stdout were lost: " in one for one in others)  # a short piece still fit


def test_a_pipe_without_a_reader_causes_one_warning(make: Make, tmp_path: Path) -> None:
    read, write_end = os.pipe()
    with open(write_end, "wb") as file:
        loop = make(worker_stdout=file, worker_output_prefix=True)
    os.close(read)
    with loop.printing() as write:
        for _ in range(3):
            write(OUT, b"line\n")
            loop.until(lambda: not has_pending_output(loop))

    assert (tmp_path / "log").read_text().count("is lost: Broken pipe") == 1


def test_syslog_gets_each_line_as_a_message(make: Make, syslog: socket.socket, tmp_path: Path) -> None:
    to = f"syslog:web.app@{tmp_path / 'syslog'}"
    loop = make(worker_stdout=to, worker_stderr=to, worker_output_prefix=True)
    with loop.printing(3) as write:
        write(OUT, "plän \x1b[31m\n".encode())
        write(ERR, b"err\n")
        loop.until(lambda: not has_pending_output(loop))
    messages = sorted(syslog.recv(65536).decode() for _ in range(2))

    stamp = rf"\w{{3}} \d\d \d\d:\d\d:\d\d web\.app\[{os.getpid()}\]: "
    assert re.fullmatch(f"<27>{stamp}worker 3: err", messages[0])
    assert re.fullmatch(f"<30>{stamp}" + re.escape(r"worker 3: plän \x1b[31m"), messages[1])


def test_a_line_too_long_for_syslog_is_split_into_messages(make: Make, syslog: socket.socket, tmp_path: Path) -> None:
    loop = make(worker_stdout=f"syslog:web@{tmp_path / 'syslog'}")
    with loop.printing() as write:
        write(OUT, b"x" * 20000 + b"\n")
        loop.until(lambda: not has_pending_output(loop))
    messages = [syslog.recv(65536).decode().partition("]: ")[2] for _ in range(3)]

    assert "".join(messages) == "x" * 20000


def test_a_slow_syslog_daemon_loses_no_line(make: Make, syslog: socket.socket, tmp_path: Path) -> None:
    loop = make(worker_stdout=f"syslog:web@{tmp_path / 'syslog'}")
    syslog.setblocking(False)
    got: list[str] = []
    with loop.printing() as write:
        write(OUT, b"".join(b"%d\n" % number for number in range(5000)))
        loop.turn()
        loop.turn()
        while len(got) < 5000:
            with contextlib.suppress(BlockingIOError):
                while True:
                    got.append(syslog.recv(65536).decode().partition("]: ")[2])
            loop.turn()

    assert got == [str(number) for number in range(5000)]


def test_a_syslog_daemon_may_be_restarted(make: Make, syslog: socket.socket, tmp_path: Path) -> None:
    loop = make(worker_stdout=f"syslog:web@{tmp_path / 'syslog'}")
    with loop.printing() as write:
        syslog.close()
        (tmp_path / "syslog").unlink()
        write(OUT, b"lost\n")
        loop.until(lambda: "is lost: No such file" in (tmp_path / "log").read_text())
        with listening(tmp_path / "syslog") as again:
            write(OUT, b"there\n")
            loop.until(lambda: not has_pending_output(loop))
            assert again.recv(65536).endswith(b": there")


def test_a_missing_syslog_socket_is_refused_at_the_start(make: Make, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--worker-stderr: cannot reach the syslog socket .*/nobody: No such file or directory"
    ):
        make(worker_stderr=f"syslog:web@{tmp_path / 'nobody'}")


def test_closing_forwards_the_remaining_output(make: Make) -> None:
    lines: list[str] = []
    loop = make(worker_stdout=lines.append)
    with loop.printing() as write, loop.printing(2) as other:
        write(OUT, b"one\n" * 5000 + b"part")
        other(OUT, b"two")
        loop.outputs.close()

        assert sorted(set(lines)) == ["one", "part", "two"]
        assert len(lines) == 5002
        with pytest.raises(BrokenPipeError):
            write(OUT, b"more\n")

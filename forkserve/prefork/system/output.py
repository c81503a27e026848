"""Output: the stdout and stderr of workers, and their destinations.

Workers write to a file directly. Output that must be handled line by line (for a prefix, syslog or a function) goes to the master
through a pipe, one per worker and sink; the master reads a small piece at a time between its other work. A worker with a full
pipe waits, as with any pipe. After the master's death, writing fails.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from forkserve.base import logs, privileges
from forkserve.base.errors import ConfigError
from forkserve.base.handover import InheritedFd
from forkserve.base.logfile import LogFile
from forkserve.base.logs import STDERR, STDOUT
from forkserve.base.records import record
from forkserve.base.syslog import ERR, INFO, SyslogFile
from forkserve.prefork.system.poller import READ
from forkserve.prefork.system.sinks import FileSink, FunctionSink, Sink, drain

if TYPE_CHECKING:
    from forkserve.config.settings import Settings
    from forkserve.prefork.system.poller import Poller

STREAMS: Final = {STDOUT: "stdout", STDERR: "stderr"}
PIECE: Final = 8 * 1024  # bytes to read from one worker before the next one
LONGEST_LINE: Final = 64 * 1024
LAST_PIECES: Final = 1024 * 1024


@record
class PipeState:
    """The master's end of a worker's pipe in an upgrade, with the start of a line, and the stream that it goes to."""

    pipe: InheritedFd
    prefix: bytes
    rest: bytes
    stream: int


@record
class OutputsState:
    """What workers have printed in an upgrade: their pipes, and the pieces by stream that were not passed on yet."""

    pipes: Sequence[PipeState]
    unsent: dict[int, Sequence[bytes]]


class Outputs:
    """The output of all workers. For the master, except for the results of `for_process`."""

    def __init__(self, settings: Settings, poller: Poller) -> None:
        """Open the destinations in the settings. Raises ConfigError if one cannot be written."""
        self._poller = poller
        self._prefix = settings.worker_output_prefix
        self._files: dict[int, LogFile] = {}  # by stream
        self._sinks: dict[int, Sink] = {}
        self._pipes: set[_Pipe] = set()
        self._dups: list[int] = []
        self._owner = privileges.owner(settings)
        try:
            for stream, name in STREAMS.items():
                value = getattr(settings, f"worker_{name}")
                if stream == STDERR and value == settings.worker_stdout and not str(value).startswith(("-", "syslog:")):
                    self._share()
                elif value is not None:
                    self._open(stream, f"--worker-{name}", value)
        except ConfigError:
            self.close()
            raise

    def _open(self, stream: int, name: str, value: Any) -> None:
        if isinstance(value, str) and value.startswith("syslog:"):
            syslog = SyslogFile(name, value, severity=ERR if stream == STDERR else INFO)
            self._sinks[stream] = FileSink(name, syslog, owned=True)
            return
        if callable(value) and not hasattr(value, "fileno"):
            self._sinks[stream] = FunctionSink(getattr(value, "__qualname__", repr(value)), value)
            return
        if value == "-":
            if not self._prefix:
                return  # as inherited
            file = LogFile(stream)
        elif isinstance(value, str):
            file = logs.open_file(value, self._owner)
        else:
            file = LogFile(self._dup(name, value))
        if not self._prefix:
            self._files[stream] = file
        else:
            self._sinks[stream] = FileSink(file.path or name, file)

    def _share(self) -> None:
        """Send stderr to the destination of stdout, so that both stay in order."""
        if STDOUT in self._files:
            self._files[STDERR] = self._files[STDOUT]
        if STDOUT in self._sinks:
            self._sinks[STDERR] = self._sinks[STDOUT]

    def _dup(self, name: str, file: Any) -> int:
        try:
            getattr(file, "flush", int)()  # or each worker would inherit its buffer, and write it
            descriptor = os.dup(file.fileno())
            self._dups.append(descriptor)
            os.write(descriptor, b"")
        except (AttributeError, OSError, ValueError) as error:
            raise ConfigError(f"{name}: cannot write to {file!r}: {error}") from None
        return descriptor

    @contextlib.contextmanager
    def for_process(self, name: str) -> Iterator[WorkerOutput]:
        """Enter around the fork of a process, or an order for one; `name` is its prefix. Raises OSError if no pipe can be had."""
        with contextlib.ExitStack() as in_master:
            theirs: dict[Sink, int] = {}
            for sink in dict.fromkeys(self._sinks.values()):
                ours, theirs[sink] = os.pipe()
                in_master.callback(os.close, theirs[sink])
                pipe = _Pipe(ours, f"{name}: ".encode() if self._prefix else b"", sink, self)
                self._pipes.add(pipe)
                pipe.go_on()
            pipes = {stream: LogFile(theirs[sink]) for stream, sink in self._sinks.items()}
            yield WorkerOutput(pipes, self._files, self.close_in_child)

    def close_in_child(self) -> None:
        """Close the master's descriptors, in a child just forked."""
        for pipe in self._pipes:
            os.close(pipe.descriptor)  # and no more: the poller is shared with the master
        for sink in self._sinks.values():
            sink.close()

    def export(self) -> OutputsState:
        """Describe what waits here to be passed on, for an upgrade."""
        streams = {id(sink): stream for stream, sink in reversed(self._sinks.items())}
        return OutputsState(
            [pipe.export(streams.get(id(pipe.sink), STDERR)) for pipe in self._pipes],
            {stream: sink.export() for stream, sink in self._sinks.items() if streams[id(sink)] == stream},
        )

    def adopt(self, found: OutputsState) -> None:
        """Take them over in the new program; lines without a destination any more go to stderr."""
        left = FileSink("stderr", LogFile(STDERR))
        for stream, pieces in found.unsent.items():
            self._sinks.get(stream, left).adopt(pieces)
        left.flush()
        for one in found.pipes:
            pipe = _Pipe(one.pipe, one.prefix, self._sinks.get(one.stream, left), self)
            pipe.rest = one.rest
            self._pipes.add(pipe)
            pipe.go_on()

    def forget(self, pipe: _Pipe) -> None:
        """Close a pipe that has ended."""
        self._pipes.discard(pipe)
        self._poller.unwatch(pipe.descriptor)
        os.close(pipe.descriptor)

    def watch(self, pipe: _Pipe) -> None:
        """Read the pipe whenever it is readable."""
        self._poller.watch(pipe.descriptor, READ, pipe.read)

    def pause(self, pipe: _Pipe, seconds: float) -> None:
        """Leave the pipe unread for `seconds`, then let it try again."""
        self._poller.unwatch(pipe.descriptor)
        self._poller.at(time.monotonic() + seconds, pipe.go_on)

    def close(self) -> None:
        """Read the rest of the pipes, and close everything. When the workers have ended."""
        for pipe in list(self._pipes):
            pipe.finish()
        for sink in dict.fromkeys(self._sinks.values()):
            sink.finish()
        while self._dups:
            os.close(self._dups.pop())
        logs.close_files()


class WorkerOutput:
    """The destinations of stdout and stderr of one process: pipes of its own, and files."""

    def __init__(self, pipes: Mapping[int, LogFile], files: Mapping[int, LogFile], close_masters: Callable[[], None]) -> None:
        self._pipes = pipes
        self._files = files
        self._close_masters = close_masters

    def descriptors(self) -> list[tuple[int, int]]:
        """Return the stream and the descriptor of each pipe, to be sent with an order."""
        return [(stream, file.descriptor) for stream, file in self._pipes.items()]

    def install(self) -> None:
        """Redirect stdout and stderr there, in a child that the master has just forked."""
        self._close_masters()
        for stream, file in {**self._files, **self._pipes}.items():
            _redirect(stream, file)

    def replace(self, pipes: Mapping[int, int]) -> None:
        """Redirect them to other pipes, in a worker just forked from the mold that has these."""
        for stream, descriptor in pipes.items():
            _redirect(stream, LogFile(descriptor))
        for descriptor in {file.descriptor for file in self._pipes.values()}:
            os.close(descriptor)


def _redirect(stream: int, file: LogFile) -> None:
    python = getattr(sys, STREAMS[stream])
    logs.redirect(stream, file)
    if isinstance(python, io.TextIOWrapper):
        python.reconfigure(line_buffering=True)  # read line by line, like a terminal


class _Pipe:
    """The master's end of a pipe that a worker writes to."""

    def __init__(self, descriptor: int, prefix: bytes, sink: Sink, owner: Outputs) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self._prefix = prefix
        self.sink = sink
        self._owner = owner
        self.rest = b""  # the start of an incomplete line
        self._ended = False
        self._watched = False
        self._closed = False

    def export(self, stream: int) -> PipeState:
        """Describe it, for an upgrade."""
        return PipeState(InheritedFd(self.descriptor), self._prefix, self.rest, stream)

    def read(self, _events: int = READ) -> None:
        """Read a piece, and give it to the sink."""
        try:
            data = os.read(self.descriptor, PIECE)
        except BlockingIOError:
            return
        self._ended = not data
        self._put(data)
        self.go_on()

    def go_on(self) -> None:
        """Read on, or close, if the sink has taken everything so far; else pause."""
        if self._closed:
            return
        if not self.sink.flush():
            self._watched = False
            self._owner.pause(self, self.sink.pause())
        elif self._ended:
            self._close()
        elif not self._watched:
            self._watched = True
            self._owner.watch(self)

    def finish(self) -> None:
        """Read the rest, and close."""
        if not self._ended:
            for data in drain(self.descriptor, LAST_PIECES):
                self._put(data)
            self._put(b"")
        self._close()

    def _close(self) -> None:
        self._closed = True
        self._owner.forget(self)

    def _put(self, data: bytes) -> None:
        """Give the sink the complete lines; at the end of file, also an incomplete last one."""
        *lines, rest = (self.rest + data).split(b"\n")
        if len(rest) >= LONGEST_LINE or (rest and not data):
            lines.append(rest)
            rest = b""
        self.rest = rest
        self.sink.put(self._prefix + piece for line in lines for piece in _pieces(line))


def _pieces(line: bytes) -> Iterable[bytes]:
    return (line[start : start + LONGEST_LINE] for start in range(0, len(line) or 1, LONGEST_LINE))

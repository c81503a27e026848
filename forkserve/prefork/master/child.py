"""Child: what the master holds of one worker process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from forkserve.base.handover import InheritedFd, copied
from forkserve.base.logs import printable
from forkserve.base.memory import nameless_file
from forkserve.base.records import record
from forkserve.prefork.ipc.channel import Channel, ChannelState
from forkserve.prefork.ipc.messages import Failed, LogFiles
from forkserve.prefork.ipc.orders import OrderSocket
from forkserve.prefork.policy.states import process_name
from forkserve.prefork.worker import stacks

if TYPE_CHECKING:
    from forkserve.prefork.policy.states import Member
    from forkserve.prefork.system.scoreboard import Row


@record
class ChildState:
    """A worker or mold in an upgrade; the fields are those of `Child`. Its row is its member's, which goes with the pool."""

    id: int
    age: int
    channel: ChannelState
    stacks: InheritedFd
    pid: int | None
    failure: Failed | None
    fault: Failed | None
    commands: Sequence[Mapping[str, str]]
    orders: InheritedFd | None


@dataclass(eq=False, slots=True)
class Child:
    """A worker, or a mold, seen from the master; gunicorn's hooks get it as their `worker`.

    It stays the master's until its exit was noticed, so its pid cannot mean another process.
    """

    id: int
    age: int
    member: Member
    channel: Channel
    row: Row
    stacks: int
    pid: int | None = None
    failure: Failed | None = None  # what it said of why it could not boot
    fault: Failed | None = None  # as `failure`, if it is ready without the app and shows that instead; under --reload
    commands: Sequence[Mapping[str, str]] = field(default_factory=list)  # that it knows, besides the server's own
    orders: OrderSocket | None = None  # a mold's

    def __str__(self) -> str:
        return f"{process_name(self.id)} (pid {self.pid})"

    def export(self) -> ChildState:
        """Describe it, for an upgrade."""
        channel, stacks = self.channel.export(), InheritedFd(self.stacks)
        orders = None if self.orders is None else InheritedFd(self.orders.fileno())
        return copied(self, ChildState, channel=channel, stacks=stacks, orders=orders)

    @classmethod
    def adopt(cls, found: ChildState, member: Member, row: Row) -> Child:
        """Make it again in the new program."""
        orders = None if found.orders is None else OrderSocket.adopt(found.orders)
        return copied(found, cls, member=member, row=row, channel=Channel.adopt(found.channel), orders=orders)

    def signal(self, signum: int) -> None:
        """Send it a signal."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def ask_for_stacks(self) -> None:
        """Have it write its stacks down, by its Python handler; `answered` then says when it has."""
        os.ftruncate(self.stacks, 0)
        self.signal(signal.SIGUSR2)

    def dump_stacks(self) -> None:
        """Have it write its stacks down in C, whatever its Python code does. It may crash: only for one that is to be killed."""
        self.signal(stacks.NATIVE)

    @property
    def answered(self) -> bool:
        """Whether its Python handler has written its stacks since it was asked."""
        size = os.fstat(self.stacks).st_size
        return size > 0 and os.pread(self.stacks, 1, size - 1) == stacks.END

    def read_stacks(self) -> str:
        """Return the stacks that it has written, as text; empty if there are none."""
        found = os.pread(self.stacks, stacks.MAX_STACKS, 0).rstrip(stacks.END)
        return found.decode("utf-8", "backslashreplace").strip()

    def in_hand(self) -> list[str]:
        """Return a line for each request that it has in hand, or had when it ended, as far as that was noted."""
        now = time.monotonic_ns()
        return [f"in hand for {(now - started) / 1e9:.0f} s: {printable(line)}" for started, line in self.row.lines()]

    def last_words(self) -> str:
        """Return its requests in hand and its stacks, for the log."""
        return "\n".join([*self.in_hand(), self.read_stacks() or "no stacks: the process did not answer"])

    def close(self) -> None:
        """Let go of everything that was held for it."""
        self.channel.close()
        if self.orders is not None:
            self.orders.close()
        os.close(self.stacks)


def pass_logs(channel: Channel, files: Mapping[str, int]) -> None:
    """Send a child the descriptors of log files, by path."""
    with contextlib.suppress(OSError):  # no descriptor is left to copy one: it keeps what it has
        channel.send(LogFiles(list(files)), list(files.values()))


def stacks_file() -> int:
    """Return the descriptor of such a file for stacks; each dump goes to its end."""
    descriptor = nameless_file("forkserve-stacks")
    # The worker's offset stays where its last dump ended, and ours would be shared with it.
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)
    return descriptor

"""Child: what the master holds of one worker process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from forkserve.base.handover import InheritedFd, copied
from forkserve.base.logs import printable
from forkserve.base.memory import nameless_file
from forkserve.base.records import record
from forkserve.base.stacktext import trim
from forkserve.prefork.ipc.channel import Channel, ChannelState
from forkserve.prefork.ipc.hooks import WorkerHandle, attributes_of, sendable
from forkserve.prefork.ipc.messages import Failed, LogFiles
from forkserve.prefork.ipc.orders import OrderSocket
from forkserve.prefork.ipc.pending import CommandDescription
from forkserve.prefork.policy.states import process_name
from forkserve.prefork.worker import stacks

if TYPE_CHECKING:
    from forkserve.prefork.policy.states import Member
    from forkserve.prefork.system.scoreboard import Row


@record
class ChildState:
    """A worker or mold in an upgrade; the fields are those of `Child`. The number of its row is in its member's state."""

    id: int
    age: int
    channel: ChannelState
    stacks: InheritedFd
    pid: int | None
    failure: Failed | None
    fault: Failed | None
    commands: Sequence[CommandDescription]
    orders: InheritedFd | None
    attributes: Mapping[str, Any] = field(default_factory=dict)  # set by users' hooks, as far as JSON can hold them
    layout: str = ""  # names the scoreboard that it uses


@dataclass(eq=False, slots=True)
class Child:
    """What the master holds of one worker or mold. Hooks get its `handle`.

    The master keeps it until it has reaped the process, so the pid cannot be that of another process.
    """

    handle: WorkerHandle
    member: Member
    channel: Channel
    row: Row
    stacks: int
    failure: Failed | None = None  # why it has not booted
    fault: Failed | None = None  # the same for a worker that is ready with the error page (--reload)
    commands: Sequence[CommandDescription] = field(default_factory=list)  # the commands of its class, beside the server's own
    runs: str = ""  # what it runs, for the start-up lines
    orders: OrderSocket | None = None  # of a mold

    def __str__(self) -> str:
        return f"{process_name(self.id)} (pid {self.pid})"

    @property
    def id(self) -> int:
        """The slot, or MOLD."""
        return self.member.slot

    @property
    def age(self) -> int:
        """How many processes were started before this one."""
        return self.member.ident

    @property
    def pid(self) -> int | None:
        """The pid of the process; None if there is none yet."""
        return self.handle.pid

    @pid.setter
    def pid(self, pid: int | None) -> None:
        vars(self.handle).update(pid=pid)

    def export(self) -> ChildState:
        """Describe it, for an upgrade."""
        channel, stacks = self.channel.export(), InheritedFd(self.stacks)
        orders = None if self.orders is None else InheritedFd(self.orders.fileno())
        attributes = sendable(attributes_of(self.handle)).values
        layout = self.row.layout.name
        return copied(self, ChildState, channel=channel, stacks=stacks, orders=orders, attributes=attributes, layout=layout)

    @classmethod
    def adopt(cls, found: ChildState, member: Member, row: Row, handle: WorkerHandle) -> Child:
        """Make the object in the new program."""
        orders = None if found.orders is None else OrderSocket.adopt(found.orders)
        vars(handle).update(found.attributes, pid=found.pid)
        return copied(found, cls, handle=handle, member=member, row=row, channel=Channel.adopt(found.channel), orders=orders)

    def signal(self, signum: int) -> None:
        """Send it a signal."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def ask_for_stacks(self, *, abort: bool = False) -> None:
        """Have its Python handler write its stacks; `answered` is true when it has. With *abort* it calls worker_abort first."""
        os.ftruncate(self.stacks, 0)
        if abort:
            os.write(self.stacks, stacks.ABORT)
        self.signal(signal.SIGUSR2)

    def dump_stacks(self) -> None:
        """Have its stacks written in C, whatever its Python code does. It may crash, so call this only before a kill."""
        self.signal(stacks.NATIVE)

    @property
    def answered(self) -> bool:
        """Whether its Python handler has written its stacks since `ask_for_stacks`."""
        size = os.fstat(self.stacks).st_size
        return size > 0 and os.pread(self.stacks, 1, size - 1) == stacks.END

    @property
    def aborting(self) -> bool:
        """Whether its Python handler has called worker_abort, which has not returned."""
        return os.pread(self.stacks, 1, 0) == stacks.ABORTING

    def read_stacks(self) -> str:
        """Return the stacks that it has written; an empty string if there are none."""
        found = os.pread(self.stacks, stacks.MAX_STACKS, 0).strip(stacks.MARKS)
        return found.decode("utf-8", "backslashreplace").strip()

    def in_hand(self) -> list[str]:
        """Return a line for each noted request that it has in hand, or had when it ended."""
        now = time.monotonic_ns()
        return [f"in hand for {(now - started) / 1e9:.0f} s: {printable(line)}" for started, line in self.row.lines()]

    def last_words(self) -> str:
        """Return its requests in hand and its stacks, for the log."""
        return "\n".join([*self.in_hand(), trim(self.read_stacks()) or "no stacks: the process did not answer"])

    def close(self) -> None:
        """Close everything that the master holds of it."""
        self.channel.close()
        if self.orders is not None:
            self.orders.close()
        os.close(self.stacks)


def pass_logs(channel: Channel, files: Mapping[str, int]) -> None:
    """Send a child the descriptors of log files, by path."""
    with contextlib.suppress(OSError):  # no descriptor is free for a copy: the child keeps its old files
        channel.send(LogFiles(list(files)), list(files.values()))


def stacks_file() -> int:
    """Return the descriptor of a new file for stacks. Each dump is appended to it."""
    descriptor = nameless_file("forkserve-stacks")
    # The worker's offset stays behind its last dump, and it is shared with the master's.
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)
    return descriptor

"""A server with extensions: an observer that counts events, a source of workers, a command, and perhaps another control endpoint.

`python -m tests.integration.seams_program PATH`: PATH is the control socket. If there is a file PATH.tcp, the server listens for
commands on a loopback port instead, and writes the port to PATH.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NoReturn

from forkserve import Server, Worker
from forkserve.base.handover import InheritedFd
from forkserve.base.records import record
from forkserve.prefork.control.command import command
from forkserve.prefork.control.socketfile import SocketFile
from forkserve.prefork.master.forker import NewWorker
from forkserve.prefork.master.observers import Observer
from forkserve.prefork.master.worker_source import DirectFork
from forkserve.prefork.policy.states import MOLD, Member, State
from forkserve.prefork.system.scoreboard import unseen_row
from forkserve.prefork.worker.boot import become_subreaper
from forkserve.prefork.worker.mold import Mold
from tests.integration.custom_workers import Idle

if TYPE_CHECKING:
    from forkserve.prefork.ipc.channel import Channel
    from forkserve.prefork.ipc.messages import Order
    from forkserve.prefork.ipc.orders import OrderSocket
    from forkserve.prefork.master.child import Child
    from forkserve.prefork.master.forker import Forker, WorkerSource
    from forkserve.prefork.master.services import ObserverFactory, Services
    from forkserve.prefork.system.output import WorkerOutput
    from forkserve.prefork.worker.context import WorkerContext

PROGRAM = ("-m", "tests.integration.seams_program")
HELPER = "SEAMS_HELPER"


# An observer, like a metric.


class CountingObserver(Observer):
    """Counts events."""

    def __init__(self, services: Services) -> None:
        self.counts = Counter[str]()
        self.source = HelperSource(services)

    def announced(self) -> None:
        self.counts["announced"] += 1
        self.source.fork_helper()

    def forking(self, child: Child) -> None:
        self.counts["forking"] += 1

    def became_ready(self, child: Child) -> None:
        self.counts["became_ready"] += 1
        if child.id == 2:
            raise ValueError("an observer that does not work")

    def worker_exited(self, child: Child, status: int) -> None:
        self.counts["worker_exited"] += 1

    def reload_began(self, generation: int) -> None:
        self.counts["reload_began"] += 1

    def reload_ended(self, fault: str | None) -> None:
        self.counts[f"reload_ended {fault}"] += 1

    def upgrading(self) -> None:
        self.source.close()

    def close(self) -> None:
        self.source.close()

    def close_in_child(self) -> None:
        self.source.close()


# A source of workers.


class HelperSource:
    """A source that orders workers from a process of its own. Before that exists, the master forks them."""

    def __init__(self, services: Services) -> None:
        self.fallback: WorkerSource | None = DirectFork()
        self.ordered = 0
        self._forker = services.children.forker
        self._processes = services.processes
        self._helper: Child | None = None
        assert become_subreaper()  # so that the master is the parent of what the helper forks
        services.use_source(self)

    def fork_helper(self) -> None:
        forker, member = self._forker, Member(0, MOLD, 0, State.BOOTING, since=0.0, limit=0.0)
        with forker.new(member, unseen_row()) as (child, channel), forker.outputs.for_process("helper") as output:
            new = NewWorker(child, channel, output)
            forker.fork_mold(new, become_helper, forker.context(new, forker.state.inheritance.latest))
        self._helper = child
        assert child.pid is not None
        self._processes.expect(child.pid, lambda _status: None)
        print("the helper process runs", file=sys.stderr, flush=True)

    def start(self, new: NewWorker, forker: Forker) -> None:
        if self._helper is None or self._helper.orders is None:
            DirectFork().start(new, forker)
            return
        self._helper.orders.send(forker.order(new))
        self.ordered += 1

    def close(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.close()


class Helper(Mold):
    """Forks workers that have loaded nothing yet."""

    def _load(self) -> None:
        os.environ[HELPER] = str(os.getpid())
        self._ignore_signals()

    def _context_for(self, order: Order, channel: Channel) -> WorkerContext:
        return replace(super()._context_for(order, channel), generation=order.generation)


def become_helper(
    worker_class: type[Worker], context: WorkerContext, orders: OrderSocket, close: Callable[[], None], output: WorkerOutput
) -> NoReturn:
    code = 1
    try:
        code = Helper(worker_class, context, orders, output).live(close)
    except BaseException:  # noqa: BLE001 - nothing leaves this process but its exit code
        traceback.print_exc()
    finally:
        os._exit(code)


class Helped(Idle):
    """Knows the helper process that it was forked from."""

    def child_helper(self) -> int | None:
        return int(os.environ[HELPER]) if HELPER in os.environ else None


# A control endpoint.


@record
class LoopbackState:
    """A loopback endpoint in an upgrade."""

    tcp: InheritedFd


class LoopbackEndpoint:
    """Listens for commands on a TCP port; implements `Endpoint`. A peer is authorized by its address, which only a test may do."""

    STATE: ClassVar[type] = LoopbackState

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)

    @classmethod
    def open(cls, setting: str | None, name: str, environ: Mapping[str, str]) -> tuple[str, LoopbackEndpoint]:
        self = cls(socket.create_server(("127.0.0.1", 0)))
        assert setting is not None
        Path(setting).write_text(str(self.sock.getsockname()[1]))
        return name, self

    @classmethod
    def adopt(cls, found: LoopbackState) -> LoopbackEndpoint:
        return cls(socket.socket(fileno=found.tcp))

    def refusal(self, client: socket.socket) -> str | None:
        return None if client.getpeername()[0] == "127.0.0.1" else "only 127.0.0.1 may send commands"

    def export(self) -> LoopbackState:
        return LoopbackState(InheritedFd(self.sock.fileno()))

    def remove(self) -> None:
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


# The server, with a command.


class ExtendedServer(Server):
    """Has all extensions."""

    control_endpoint = LoopbackEndpoint if os.path.exists(f"{sys.argv[-1]}.tcp") else SocketFile

    def observer_factories(self) -> Sequence[ObserverFactory]:
        return [*super().observer_factories(), CountingObserver]

    @command("Show how often an event has happened.", usage="[EVENT...]", repeatable=True)
    def count(self, *events: str) -> dict[str, int]:
        """Return how often these events have happened; all events, if none is named."""
        (observer,) = [one for one in self.observers if isinstance(one, CountingObserver)]
        counts = {**observer.counts, "ordered": observer.source.ordered}
        return {name: number for name, number in counts.items() if not events or name in events}

    def on_count(self, *events: str) -> None:
        if "secret" in events:
            raise PermissionError("not that one")


def main() -> int:
    return ExtendedServer(worker=Helped, workers=2, control_socket=sys.argv[1], reload_settle=0).run()


if __name__ == "__main__":
    sys.exit(main())

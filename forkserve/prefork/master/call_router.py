"""Call router: takes commands to the workers and their replies back, also those that one worker sends to the others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from forkserve.base.errors import CommandError
from forkserve.base.logs import logger
from forkserve.base.records import record
from forkserve.prefork.ipc import messages
from forkserve.prefork.ipc.codec import encode
from forkserve.prefork.ipc.frames import FrameError
from forkserve.prefork.ipc.messages import Answer, CallError
from forkserve.prefork.ipc.pending import Pending
from forkserve.prefork.master.observers import Observer
from forkserve.prefork.policy.calls import Calls, Send, Target
from forkserve.prefork.policy.pool import Phase
from forkserve.prefork.policy.states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.prefork.ipc.pending import JSON
    from forkserve.prefork.master.child import Child
    from forkserve.prefork.master.children import Children
    from forkserve.prefork.system.poller import Poller

MANY_CALLS = 1 << 63  # a number as long as any

BUSY = 0.1  # seconds in which an idle worker writes its counters down


@record
class CallsState:
    """The calls in an upgrade: the number of the next one, and the calling worker's ident and number of each open call."""

    next: int
    callers: Sequence[tuple[int, int]]


class CallRouter(Observer):
    """Has workers run commands. In the master.

    Args:
        children: The workers.
        poller: Rings when a wait is over.
        ask_for: Calls a command for a worker: gets the arguments of `ask`, and may raise CommandError.
        slot: Gives the slot that a word or number names; may raise CommandError.
    """

    RECEIVES = (messages.Result, messages.Free, messages.Call, messages.Noted)

    def __init__(
        self, children: Children, poller: Poller, ask_for: Callable[..., Pending], slot: Callable[[int | str], int]
    ) -> None:
        self.children = children
        self._poller = poller
        self._ask_for = ask_for
        self._slot = slot
        self._calls = Calls()
        self._fresh: list[tuple[Pending, set[int]]] = []
        self._callers: set[tuple[int, int]] = set()  # calls of workers: the worker's ident, and its number for the call

    def next_deadline(self) -> float | None:
        """When `expire` must be called; None for never."""
        return self._calls.next_deadline()

    def expire(self) -> None:
        """End the calls whose time is up, and those that wait for any worker when no worker will be ready."""
        self._calls.expire(time.monotonic())
        if self.children.pool.phase >= Phase.STOPPING:
            self._calls.refuse(CommandError("the server is stopping", "refused"))

    def ask(self, name: str, args: Sequence[JSON], to: str | int, timeout: float | None, caller: int | None = None) -> Pending:
        """Send workers a command, as `Server.call` does, but not the worker with the ident `caller`. Raises CommandError."""
        now = time.monotonic()
        deadline = None if timeout is None else now + timeout
        targets = [target for target in self.children.targets() if target.ident != caller]
        try:
            encode(messages.Command(MANY_CALLS, name, args, deadline))
        except FrameError as error:
            raise CommandError(f"{name} cannot be asked for: {error}", "usage") from error
        if to == "any":
            pending, sends = self._calls.ask_any(name, args, targets, now, deadline, caller)
        else:
            if to != "all":
                slot = self._slot(to)
                targets = [target for target in targets if target.id == slot][-1:]  # the newest, while it replaces another
                if not targets:
                    raise CommandError(f"worker {slot} cannot be asked: it is not ready, or it is the one that asks")
            pending, sends = self._calls.ask(name, args, targets, now, deadline)
        self._send(sends)
        return pending

    def _send(self, sends: Sequence[Send]) -> None:
        frames: dict[int, bytes] = {}  # one message goes to many
        for ident, message in sends:
            frame = frames.get(id(message)) or frames.setdefault(id(message), encode(message))
            child = self.children.by_ident.get(ident)
            if child is None or not self.children.send_frame(child, frame):
                self._calls.gone(ident, time.monotonic())

    def fresh(self) -> Pending:
        """Have every ready worker write its counters down. Ends when all have, or after BUSY: a busy worker cannot."""
        pending = Pending()
        missing = {target.ident for target in self.children.targets()}
        self._fresh.append((pending, missing))
        self._send([Send(ident, messages.Note()) for ident in missing])
        self._poller.at(time.monotonic() + BUSY, lambda: pending.resolve(None))
        self._noted(None)
        return pending

    def _noted(self, ident: int | None) -> None:
        for pending, missing in self._fresh:
            missing.discard(ident or 0)
            if not missing:
                pending.resolve(None)
        self._fresh = [one for one in self._fresh if not one[0].done]

    def export(self) -> CallsState:
        """Describe the calls that workers wait for, for an upgrade."""
        return CallsState(self._calls.export(), list(self._callers))

    def adopt(self, found: CallsState) -> None:
        """Go on in the new program. Calls that were under way end with an error."""
        self._calls.adopt(found.next)
        error = CallError("the server was upgraded meanwhile: what was begun may have been done", "failed")
        for ident, number in found.callers:
            if child := self.children.by_ident.get(ident):
                self.children.send(child, Answer(number, error, []))

    # Events of workers.

    def became_ready(self, child: Child) -> None:
        """A worker takes commands from now on."""
        self._send(self._calls.offer(child.member.ident))

    def received(self, child: Child, message: messages.Message) -> None:
        """A worker has replied, is free for a command, or calls a command in others."""
        ident, now = child.member.ident, time.monotonic()
        match message:
            case messages.Call():
                self._called_by(child, message)
            case messages.Noted():
                self._noted(ident)
            case messages.Result():
                if problem := self._calls.replied(ident, message, now):
                    logger.warning("%s: %s", child, problem)
                if child.member.state is State.READY:
                    self._send(self._calls.offer(ident))
            case messages.Free() if child.member.state is State.READY and child.pid is not None:
                target = Target(ident, child.id, child.pid, child.member.generation)
                self._send(self._calls.free(target, now))

    def ended(self, child: Child) -> None:
        """A worker takes no more commands."""
        self._calls.gone(child.member.ident, time.monotonic())

    def _called_by(self, child: Child, call: messages.Call) -> None:
        caller = child.member.ident, call.number
        self._callers.add(caller)

        def answer(ended: Pending) -> None:
            self._callers.discard(caller)
            error = None if ended.error is None else CallError(str(ended.error), ended.error.code)
            try:
                self.children.send(child, Answer(call.number, error, ended.value or []))
            except FrameError as fault:
                cannot = CallError(f"the replies together cannot be sent: {fault}", "failed")
                self.children.send(child, Answer(call.number, cannot, []))

        pending = Pending()
        try:
            pending = self._ask_for(call.name, call.args, call.to, call.timeout, child.member.ident)
        except CommandError as error:
            pending.fail(error)
        except (TypeError, ValueError) as error:  # for example a name that is no text: no reason to kill the worker
            pending.fail(CommandError(f"this cannot be asked for: {error}", "usage"))
        pending.finally_(answer)

"""Call router: sends commands to workers and collects their replies, also for a worker that calls the others."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from forkserve.base.errors import CommandError
from forkserve.base.logs import logger
from forkserve.base.records import record
from forkserve.prefork.ipc import messages
from forkserve.prefork.ipc.codec import encode
from forkserve.prefork.ipc.frames import FrameError
from forkserve.prefork.ipc.messages import Answer, CallError
from forkserve.prefork.ipc.pending import Pending
from forkserve.prefork.master import arguments
from forkserve.prefork.master.observers import Observer
from forkserve.prefork.policy.calls import NO_KWARGS, Calls, CallTarget, Send
from forkserve.prefork.policy.pool import Phase
from forkserve.prefork.policy.states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.prefork.ipc.pending import JSON
    from forkserve.prefork.master.child import Child
    from forkserve.prefork.master.children import Children
    from forkserve.prefork.system.poller import Poller

MANY_CALLS = 1 << 63  # a call number of the greatest length

BUSY = 0.1  # seconds within which any idle worker writes its counters


@record
class CallsState:
    """The calls in an upgrade: the number of the next one, and for each open call of a worker its ident and its number."""

    next: int
    callers: Sequence[tuple[int, int]]


class CallRouter(Observer):
    """Has workers run commands. In the master.

    Args:
        children: The workers.
        poller: Calls when a wait is over.
        ask_for: Calls a command for a worker; takes the arguments of `ask`, and may raise CommandError.
    """

    RECEIVES = (messages.Result, messages.Free, messages.Call, messages.Noted)

    def __init__(self, children: Children, poller: Poller, ask_for: Callable[..., Pending]) -> None:
        self.children = children
        self._poller = poller
        self._ask_for = ask_for
        self._calls = Calls()
        self._fresh: list[tuple[Pending, set[int]]] = []
        self._callers: set[tuple[int, int]] = set()  # open calls of workers: the worker's ident, and its number for the call

    def next_deadline(self) -> float | None:
        """Return when `expire` must be called; None: never."""
        return self._calls.next_deadline()

    def expire(self) -> None:
        """End the calls past their deadline, and those for any worker if no worker will be ready any more."""
        self._calls.expire(time.monotonic())
        if self.children.pool.phase >= Phase.STOPPING:
            self._calls.refuse(CommandError("the server is stopping", "refused"))

    def ask(
        self,
        name: str,
        args: Sequence[JSON],
        to: str | int,
        timeout: float | None,
        kwargs: Mapping[str, JSON] = NO_KWARGS,
        without: int | None = None,
    ) -> Pending:
        """Send a command to workers, except for the one with the ident `without`, as `Server.call` does. Raises CommandError."""
        now = time.monotonic()
        deadline = None if timeout is None else now + timeout
        targets = [target for target in self.children.targets() if target.ident != without]
        try:
            encode(messages.Command(MANY_CALLS, name, args, deadline, kwargs))
        except FrameError as error:
            raise CommandError(f"the arguments of {name} cannot be sent: {error}", "usage") from error
        if to == "any":
            pending, sends = self._calls.ask_any(name, args, targets, now, deadline, without, kwargs)
        else:
            if to != "all":
                slot = arguments.slot(to, self.children.pool)
                targets = [target for target in targets if target.id == slot][-1:]  # the newest, if it is replacing another
                if not targets:
                    raise CommandError(f"worker {slot} cannot be called: it is not ready, or it is the caller itself")
            pending, sends = self._calls.ask(name, args, targets, now, deadline, kwargs)
        self._send(sends)
        return pending

    def _send(self, sends: Sequence[Send]) -> None:
        frames: dict[int, bytes] = {}  # each message is encoded once, for all its receivers
        for ident, message in sends:
            frame = frames.get(id(message)) or frames.setdefault(id(message), encode(message))
            child = self.children.by_ident.get(ident)
            if child is None or not self.children.send_frame(child, frame):
                self._calls.gone(ident, time.monotonic())

    def fresh(self) -> Pending:
        """Have every ready worker write its counters. Ends when all have, or after BUSY: a busy worker cannot."""
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
        """Take the calls over in the new program. Those that were under way end with an error."""
        self._calls.adopt(found.next)
        error = CallError("the server was upgraded meanwhile: the command may have run", "failed")
        for ident, number in found.callers:
            if child := self.children.by_ident.get(ident):
                self.children.send(child, Answer(number, error, []))

    # Events of workers.

    def became_ready(self, child: Child) -> None:
        """Offer waiting calls to a worker that has become ready."""
        self._send(self._calls.offer(child.member.ident))

    def received(self, child: Child, message: messages.Message) -> None:
        """Handle a message of a worker: a reply, a free worker, or a call of other workers."""
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
                target = CallTarget(ident, child.id, child.pid, child.member.generation)
                self._send(self._calls.free(target, now))

    def ended(self, child: Child) -> None:
        """End the calls to a worker that has ended."""
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
                cannot = CallError(f"all replies together cannot be sent: {fault}", "failed")
                self.children.send(child, Answer(call.number, cannot, []))

        pending = Pending()
        try:
            without = None if call.include_self else child.member.ident
            pending = self._ask_for(call.name, call.args, call.to, call.timeout, call.kwargs, without)
        except CommandError as error:
            pending.fail(error)
        except (TypeError, ValueError) as error:  # for example a name that is no string: no reason to kill the worker
            pending.fail(CommandError(f"this call is not possible: {error}", "usage"))
        pending.finally_(answer)

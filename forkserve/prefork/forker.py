"""Forker: makes a worker process of the master, and of the worker's what is the worker's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from forkserve.prefork.channel import Channel
from forkserve.prefork.child import Child, stacks_file
from forkserve.prefork.hooks import Hooks, run_hook
from forkserve.prefork.loaded import LoadedFiles
from forkserve.prefork.process import become_worker, signals_blocked
from forkserve.prefork.worker import Worker, WorkerContext

if TYPE_CHECKING:
    from forkserve.config import Config
    from forkserve.prefork.listeners import Listeners
    from forkserve.prefork.output import Outputs
    from forkserve.prefork.patterns import Rules
    from forkserve.prefork.scoreboard import Scoreboard
    from forkserve.prefork.states import Member
    from forkserve.settings import Settings


@dataclass(frozen=True, slots=True)
class Forker:
    """Forks workers. For the master.

    `close_masters` closes, in a child, what is the master's alone; `children` are all that exist, by their member's ident.
    """

    server: object
    worker_class: type[Worker]
    settings: Settings
    hooks: Hooks
    listeners: Listeners
    scoreboard: Scoreboard
    close_masters: Callable[[], None]
    outputs: Outputs
    again: Callable[[], Config] | None  # reads the configuration anew, for a canary
    children: dict[int, Child] = field(default_factory=dict)
    rules: Rules | None = None  # under --reload: which files are the project's

    def fork(self, member: Member) -> Child:
        """Fork a worker and return what the master holds of it; does not return in the worker.

        Raises OSError where the system has no room for it; nothing is left behind then.
        """
        with contextlib.ExitStack() as undo:
            stacks = stacks_file()
            undo.callback(os.close, stacks)
            ours, theirs = Channel.pair()
            undo.callback(ours.close)
            row = self.scoreboard.assign(member.row)
            child = Child(member.slot, member.ident, member, ours, row, stacks)
            context = self._context(child, theirs)
            try:
                run_hook(self.hooks, "pre_fork", self.server, child)
                with self.outputs.for_worker(child.id) as install, signals_blocked():
                    child.pid = os.fork()
                    if child.pid == 0:
                        become_worker(self.worker_class, context, lambda: self._close_in_child(child), install)
            finally:
                theirs.close()
            undo.pop_all()
        return child

    def _context(self, child: Child, channel: Channel) -> WorkerContext:
        return WorkerContext(
            id=child.id,
            generation=child.member.generation,
            age=child.age,
            master_pid=os.getpid(),
            settings=self.settings,
            hooks=self.hooks,
            listeners=self.listeners.for_slot(child.id),
            channel=channel,
            row=child.row,
            scoreboard=self.scoreboard,
            stacks=child.stacks,
            server=self.server,
            again=self.again if child.member.canary else None,
            loaded=LoadedFiles(self.rules) if self.rules else None,
            stands_in=self.rules is not None and not child.member.canary,
        )

    def _close_in_child(self, own: Child) -> None:
        """Close what is the master's or a sibling's, in a child just forked."""
        self.close_masters()
        self.listeners.close_in_child(own.id)
        own.channel.close()
        for child in self.children.values():
            child.close()

"""Messages: the one list of all messages between the processes of a server. Pure.

Each message is a frozen dataclass: its docstring says when it is sent, and what its fields mean. The page
`docs/internals/messages.md` is generated from these definitions, and `codec` reads their annotations. A message is sent as one
JSON object in a frame (`frames`): the tag as `type`, and the fields by name.

Versions: after an upgrade, a new master has old workers and molds, and each may receive messages of the other. Both programs have
the same `handover.VERSION`; otherwise the upgrade is refused before it changes anything. Within one version, a field may be added
or dropped if it has a default, since unknown fields are ignored. Any other change needs a new version, except in messages of the
watcher and the warm process, which do not outlive an upgrade.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, TypeVar, dataclass_transform

from forkserve.base.errors import ExitCode
from forkserve.prefork.ipc.hooks import Attributes
from forkserve.prefork.ipc.pending import JSON, CommandDescription, Failure, Reply

Facts = Mapping[str, Sequence[str]]


class Message:
    """A message between two processes: its name on the wire, the processes that send it, and those that receive it."""

    __slots__ = ()
    tag: ClassVar[str]
    sender: ClassVar[str]
    receiver: ClassVar[str]


MESSAGES: Final[list[type[Message]]] = []
"""Every class of messages, in the order of this file."""
BY_TAG: Final[Mapping[bool, dict[str, type[Message]]]] = {True: {}, False: {}}  # for the master, and for its children

M = TypeVar("M", bound=Message)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def _message(tag: str, sender: str, receiver: str) -> Callable[[type[M]], type[M]]:
    """Make a class of messages; one without a tag has a socket of its own (`orders`)."""

    def register(cls: type[M]) -> type[M]:
        made = dataclass(frozen=True, slots=True)(cls)
        made.tag, made.sender, made.receiver = tag, sender, receiver
        MESSAGES.append(made)
        if tag:
            assert BY_TAG[receiver == "master"].setdefault(tag, made) is made, f"two messages {tag}"
        return made

    return register


# The life of a worker or mold: to the master.


@_message("forked", "worker", "master")
class Forked(Message):
    """The first message of a worker that a mold has forked. It gives the master the pid of the worker.

    Attributes:
        pid: Its process id.
    """

    pid: int


@_message("ready", "worker, mold, warm process", "master")
class Ready(Message):
    """A worker can take connections, or a mold can fork workers.

    Attributes:
        commands: The commands that the worker class adds to `Worker`.
        runs: What the worker runs, for the start-up lines.
    """

    commands: Sequence[CommandDescription] = ()
    runs: str = ""


@_message("failed", "worker, mold, warm process, watcher", "master")
class Failed(Message):
    """The last message of a process that could not start; but under --reload a worker goes on, with an error page (`Waits`).

    Attributes:
        message: The reason in one line.
        code: The exit code for this reason.
        traceback: The traceback of the application's own frames; null if the reason is not an exception there.
    """

    message: str
    code: int = ExitCode.BOOT
    traceback: str | None = None


@_message("waits", "worker", "master")
class Waits(Message):
    """The application did not load, and the worker waits for `ShowFault` or its replacement. Only under --reload."""


@_message("terminated", "worker", "master")
class Terminated(Message):
    """The worker got TERM or QUIT. The master answers `Drain` (drain now) or `Stay` (serve on for now)."""


@_message("draining", "worker", "master")
class Draining(Message):
    """The worker drains without an order: its `run` has returned, its master did not answer, or it got TERM while it started."""


@_message("released", "worker", "master")
class Released(Message):
    """The worker has closed its listeners. The master closes its own copies of those that no other worker needs."""


@_message("lingering", "worker", "master")
class Lingering(Message):
    """Only streams, executors or threads are left in a draining worker: a reload need not wait for it. Sent once."""


@_message("spent", "worker", "master")
class Spent(Message):
    """The worker has answered --max-requests requests, and requests a successor.

    Attributes:
        requests: How many requests it has received.
        full: Whether it accepts no connection until the successor is ready.
    """

    requests: int
    full: bool


@_message("debugging", "worker, mold", "master")
class Debugging(Message):
    """A debugger has stopped the process, or it goes on. Until then no deadline counts, and reloads wait. Only with --debug.

    Attributes:
        active: Whether it is stopped, or was a moment ago: the next stop may follow, as between two steps.
    """

    active: bool


@_message("reopen_logs", "worker", "master")
class ReopenLogs(Message):
    """The worker's log files were moved away. The master answers with `LogFiles`: a worker may lack the right to open files."""


# Commands: to the master.


@_message("call", "worker", "master")
class Call(Message):
    """The application of a worker calls a command in other workers. The master answers with `Answer`.

    The types of the application's own values are not checked here: the answer to a wrong one is an error.

    Attributes:
        number: The worker's number for the call.
        name: The name of the command.
        args: The arguments without a name.
        to: "all" ready workers, "any" one, or the id of one.
        timeout: Seconds until the call ends without an answer; null for never.
        kwargs: The arguments with a name.
        include_self: Whether the calling worker may get the command, too.
    """

    number: int
    name: JSON
    args: Sequence[JSON]
    to: JSON
    timeout: JSON
    kwargs: Mapping[str, JSON] = field(default_factory=dict)
    include_self: bool = False


@_message("free", "worker", "master")
class Free(Message):
    """The worker takes up an `Offer`: it has no request and no command in hand."""


@_message("reply", "worker", "master")
class Result(Message):
    """A command has ended.

    Attributes:
        call: The number of the call, from `Command`.
        name: The name of the command.
        status: "ok", "error" or "unknown" (there is no such command).
        value: What the command returned.
        error: What it raised; null if the status is "ok".
    """

    call: int
    name: str
    status: str
    value: JSON = None
    error: Failure | None = None


@_message("noted", "worker", "master")
class Noted(Message):
    """The worker has done what `Note` orders."""


# What is loaded, under --reload: to the master.


@_message("loaded", "worker", "master")
class Loaded(Message):
    """Files of the project that a worker has loaded since its last such message; at most 500 of each kind in one message.

    Attributes:
        since: A time at which the files were not loaded yet, in seconds of the monotonic clock. A file that has changed later may
            be newer than what was loaded.
        files: Paths of loaded files.
        folders: Directories of namespace packages.
        sought: Paths, without a suffix, where imports have found nothing.
    """

    since: float
    files: Sequence[str]
    folders: Sequence[str] = ()
    sought: Sequence[str] = ()


@_message("outside", "worker", "master")
class Outside(Message):
    """Modules from outside the project that a worker has loaded, for the warm process; at most 500 in one message.

    Attributes:
        modules: Name, origin (empty: the import failed), and whether it was loaded after the project had changed the
            environment, in the order of the imports.
        facts: The process state that imports can see, as far as the project's code has changed it; null after the first message.
        base: The number of the warm process that the worker was forked from; null if it was forked from the master.
        stale: Whether the environment was different from that of the warm process.
    """

    modules: Sequence[tuple[str, str, bool]]
    facts: Facts | None
    base: int | None
    stale: bool


@_message("cleared", "warm process", "master")
class Cleared(Message):
    """The warm process has imported its modules, and can fork workers.

    Attributes:
        count: How many modules stay loaded.
        left_out: The reason, by name, for each module that cannot be imported before the project.
    """

    count: int
    left_out: Mapping[str, str]


@_message("outdated", "warm process", "master")
class Outdated(Message):
    """A file of the warm process's modules has changed: it forks no more workers, and ends."""


# Changes of files, under --reload: from the watcher.


@_message("watching", "watcher", "master")
class Watching(Message):
    """The watcher has begun, and notices all later changes.

    Attributes:
        polls: Whether it polls, so that it needs `WatchFiles`.
    """

    polls: bool


@_message("changed", "watcher", "master")
class Changed(Message):
    """Files have changed. A change of more than 500 files is several messages.

    Attributes:
        more: Whether another message of the same change follows.
        included: Files that cause a reload in any case (--reload-include, --reload-extra-file).
        others: Files and directories that cause a reload if they were loaded.
        made: Those of `others` that were created or removed.
        since: The clock time since which changes may be unreported.
    """

    more: bool
    included: Sequence[str]
    others: Sequence[str]
    made: Sequence[str]
    since: float


@_message("at_rest", "watcher", "master")
class AtRest(Message):
    """All changes before `AskForRest` are reported.

    Attributes:
        number: The number in `AskForRest`.
    """

    number: int


@_message("log", "watcher", "master")
class Log(Message):
    """A line for the master's log. The watcher has no log.

    Attributes:
        level: The level, as in `logging`.
        text: The line.
    """

    level: int
    text: str


# Orders from the master.


@_message("drain", "master", "worker, mold, warm process")
class Drain(Message):
    """A worker must take no more connections, finish what it has, and end; a mold must end.

    Attributes:
        relieved: Whether a successor accepts from the same listeners, so that it takes the connections in their queues.
        closing: Identities of the listeners that are closed when this worker has stopped accepting.
    """

    relieved: bool = False
    closing: Sequence[int] = ()


@_message("stay", "master", "worker")
class Stay(Message):
    """The answer to `Terminated` if the worker must serve on for now; `Drain` follows.

    Attributes:
        seconds: The longest time until `Drain`.
    """

    seconds: float


@_message("serve_on", "master", "worker")
class ServeOn(Message):
    """The successor that a worker has requested (`Spent`) has failed: the worker accepts connections again."""


@_message("reopen_logs", "master", "worker, mold, warm process")
class LogFiles(Message):
    """New log files in place of those that were moved away. The descriptors travel beside the message.

    Attributes:
        files: The paths.
        descriptors: The open files, in the same order. The sender leaves it empty; in the frame it is their number.
    """

    files: Sequence[str] = ()
    descriptors: Sequence[int] = ()


@_message("detach", "master", "mold")
class Detach(Message):
    """The server has left its terminal (--daemon), and the mold must leave it, too."""


@_message("show_fault", "master", "worker")
class ShowFault(Message):
    """The files on disk cannot be loaded: answer requests with a page that shows the error. Only under --reload.

    Attributes:
        text: The error; empty for a worker that has failed with it itself.
    """

    text: str


# Commands: from the master.


@_message("command", "master", "worker")
class Command(Message):
    """Run a command, and answer with `Result`.

    Attributes:
        call: The number of the call.
        name: The name of the command.
        args: The arguments without a name.
        deadline: The time from which the command must not be started any more, in seconds of the monotonic clock; null: none.
        kwargs: The arguments with a name.
    """

    call: int
    name: str
    args: Sequence[JSON]
    deadline: float | None
    kwargs: Mapping[str, JSON] = field(default_factory=dict)


@_message("offer", "master", "worker")
class Offer(Message):
    """A call waits for any worker. The first worker that answers with `Free` gets it."""


@dataclass(frozen=True, slots=True)
class CallError:
    """Why a call of a worker has failed as a whole: the reason, and one of `CommandError.CODES`."""

    message: str
    code: str


@_message("answer", "master", "worker")
class Answer(Message):
    """The answer to a worker's `Call`.

    Attributes:
        number: The worker's number for the call.
        error: Why there are no replies; null if there are.
        replies: The replies of the workers.
    """

    number: int
    error: CallError | None
    replies: Sequence[Reply]


@_message("note", "master", "worker")
class Note(Message):
    """Write the counters into the scoreboard, and answer with `Noted`: the status is about to be read."""


# To the watcher.


@_message("loaded", "master", "watcher")
class WatchFiles(Message):
    """Files that the workers have loaded: a watcher that polls looks at them often. At most 500 in one message.

    Attributes:
        files: Their paths.
    """

    files: Sequence[str]


@_message("ask", "master", "watcher")
class AskForRest(Message):
    """Answer with `AtRest` when every change that was made until now is reported.

    Attributes:
        number: The number for the answer.
    """

    number: int


# On a socket of its own (`orders`).


@_message("", "master", "mold, warm process")
class Order(Message):
    """Fork a worker. One packet of its own socket, without a tag; the descriptors travel beside it.

    Attributes:
        id: The slot of the worker.
        age: How many workers were forked before it.
        generation: Its generation.
        canary: Whether it is the first of a reload.
        row: The index of its row in the scoreboard.
        channel: The descriptor of its end of the channel.
        stacks: The descriptor of the file that its stacks are dumped into.
        listeners: The slot (null: shared by all workers) and the descriptor of each listener.
        outputs: 1 for stdout or 2 for stderr, and the descriptor that replaces it.
        worker: What users' hooks have set on the worker.
        server: What users' hooks have set on the server.
    """

    id: int
    age: int
    generation: int
    canary: bool
    row: int
    channel: int
    stacks: int
    listeners: Sequence[tuple[int | None, int]]
    outputs: Sequence[tuple[int, int]]
    worker: Attributes = field(default_factory=Attributes)
    server: Attributes = field(default_factory=Attributes)

    def descriptors(self) -> list[int]:
        """Return all descriptors, in the order in which they are sent."""
        return [self.channel, self.stacks, *(one for _, one in self.listeners), *(one for _, one in self.outputs)]

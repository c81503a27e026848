"""Hooks: calls functions of the user, and keeps the attributes that these set on a worker. Pure, but failures are logged."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final

from forkserve.base.copies import end_returned
from forkserve.prefork.ipc.frames import is_nested_too_deeply

Hooks = Mapping[str, Callable[..., object]]


LONGEST_ATTRIBUTES: Final = 16 * 1024  # bytes of JSON
# Attributes of gunicorn's workers that these handles lack, and what to use instead.
IN_MASTER: Final = MappingProxyType(
    {
        "aborted": "on_timeout of a worker class, which is called when a worker does not respond",
        "app": "worker.wsgi in post_worker_init: the master never imports the app",
        "booted": "post_worker_init, or on_ready of a worker class",
        "max_requests": "worker.cfg.max_requests",
        "notify": "on_timeout of a worker class: the master watches the heartbeats itself",
        "sockets": "server.LISTENERS",
        "timeout": "worker.cfg.timeout",
        "tmp": "on_timeout of a worker class: the master watches the heartbeats itself",
        "wsgi": "worker.wsgi in post_worker_init: the master never imports the app",
    }
)


@dataclass(frozen=True, slots=True)
class Attributes:
    """The attributes that users' hooks have set on a handle, for another process.

    Attributes:
        values: The values by name.
        others: The names of those that cannot be sent.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    others: Sequence[str] = ()


@dataclass(eq=False)
class WorkerHandle:
    """A worker as hooks in the master see it.

    A hook may set other attributes: they stay as long as the worker lives, and those that are set in `pre_fork` are attributes of
    the worker itself from its start.

    Attributes:
        id: The slot.
        port: The worker's own TCP port; None if it has none.
        generation: The generation.
        pid: The process; None if there is none yet.
        age: How many workers were forked before this one, as with gunicorn.
        alive: False if the process has exited.
        cfg: The settings that it was forked with, as `server.cfg` shows them; after an upgrade those in force.
        ppid: The master's process.
        nr: How many requests it has begun; 0 before it is forked. When it has exited: how many in all, but if it was killed, as
            many as a second before.
    """

    id: int
    port: int | None
    generation: int
    pid: int | None = None
    age: int = 0
    alive: bool = True
    cfg: Any = field(default=None, repr=False)
    ppid: int = 0
    _requests: Callable[[], int] = field(default=int, repr=False)  # the last field: with it the handle is complete

    @property
    def nr(self) -> int:
        """How many requests the worker has begun."""
        return self._requests()

    def ended(self) -> None:
        """Note that the process has exited. Called while its number of requests can still be read."""
        requests = self.nr
        vars(self).update(alive=False, _requests=lambda: requests)

    @property
    def log(self) -> logging.Logger:
        """The server's logger."""
        return logging.getLogger("forkserve")

    if not TYPE_CHECKING:  # the type checker would accept any name

        def __getattr__(self, name: str) -> Any:
            """Raise AttributeError, and say what to use."""
            raise missing_attribute(self, "the worker, as the master knows it,", name, IN_MASTER)

        def __setattr__(self, name: str, value: object) -> None:
            """Set an attribute of the user's."""
            if name in self.OWN and "_requests" in vars(self):
                raise AttributeError(f"worker.{name} is set by the server: choose another name")
            super().__setattr__(name, value)

    OWN: ClassVar = frozenset(("id", "port", "generation", "pid", "age", "alive", "cfg", "ppid", "nr", "log", "_requests"))


def attributes_of(holder: Any) -> dict[str, Any]:
    """Return the attributes that hooks have set on a handle: all but those of `OWN`."""
    return {name: value for name, value in vars(holder).items() if name not in type(holder).OWN}


def missing_attribute(holder: object, what: str, name: str, instead: Mapping[str, str]) -> AttributeError:
    """Return the error for an attribute that a handle does not have."""
    if name in vars(holder).get("_unsent", ()):
        use = "it was set in the master; with --preload a worker gets only what JSON holds: set it in post_fork"
    else:
        use = f"use {instead[name]}" if name in instead else ""
    return AttributeError(f"{what} has no attribute {name!r}{use and f': {use}'}", name=name, obj=holder)


def sendable(attributes: Mapping[str, Any]) -> Attributes:
    """Return the attributes that JSON can hold, up to LONGEST_ATTRIBUTES bytes, and the names of the others."""
    values, room = {}, LONGEST_ATTRIBUTES
    for name, value in attributes.items():
        try:
            text = json.dumps({name: value}, allow_nan=False)
            if len(text) <= room and not is_nested_too_deeply(value, text.encode()) and json.loads(text) == {name: value}:
                values[name] = value
                room -= len(text)
        except (TypeError, ValueError, RecursionError):
            pass  # JSON cannot hold it
    return Attributes(values, [name for name in attributes if name not in values])


def adopt_attributes(holder: object, attributes: Attributes) -> None:
    """Set the attributes on a handle that hooks have set in another process."""
    vars(holder).update(attributes.values)
    vars(holder)["_unsent"] = attributes.others


def run_hook(hooks: Hooks, name: str, *arguments: object, keep: bool = False) -> None:
    """Call a hook if the user has defined it. An exception is logged, and the server goes on.

    Args:
        hooks: The user's hooks.
        name: The name of the hook.
        arguments: Its arguments.
        keep: Whether the context variables that it sets (PEP 567) stay set in this context, as agents need it; else they hold
            only within the hook.
    """
    hook = hooks.get(name)
    if hook is not None:
        call_hook(f"hook {name}", hook, *arguments, keep=keep)


def call_hook(what: str, hook: Callable[..., object], *arguments: object, keep: bool = False) -> None:
    """Call a function of the user as `run_hook` does; `what` names it in the log."""
    try:
        if keep:
            hook(*arguments)
        else:
            copy_context().run(hook, *arguments)
    except Exception:
        logging.getLogger("forkserve").exception("%s failed", what)
    end_returned()

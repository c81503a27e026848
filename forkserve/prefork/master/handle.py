"""Handle: the server as users' hooks see it, with the names of gunicorn that documented hooks and public configurations use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

from forkserve.base import logs
from forkserve.base.errors import CommandError
from forkserve.config.hooksettings import HookSettings
from forkserve.prefork.ipc.hooks import attributes_of, missing_attribute, run_hook
from forkserve.prefork.master.observers import Observer
from forkserve.prefork.policy.states import MOLD

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Collection, Mapping

    from forkserve.config.settings import Settings
    from forkserve.prefork.ipc.hooks import WorkerHandle
    from forkserve.prefork.master.child import Child
    from forkserve.prefork.master.context import MasterContext
    from forkserve.prefork.policy.pool import Pool
    from forkserve.prefork.system.listeners import Listeners

# The methods beside the commands: they add handlers to the master's loop.
HANDLERS: Final = ("add_io_handler", "every", "map", "on_signal", "remove_io_handler")
# Attributes of gunicorn's arbiter that this handle lacks, and what to use instead.
INSTEAD: Final = MappingProxyType({"timeout": "server.cfg.timeout", "worker_class": "server.cfg.worker"})


@dataclass(frozen=True, slots=True)
class ListenerHandle:
    """A listener as a hook sees it: `str()` returns the address with its scheme, `getsockname()` the system's name for it."""

    address: str
    name: Any

    def __str__(self) -> str:
        return self.address

    def getsockname(self) -> Any:
        """Return the address as `socket.getsockname` does."""
        return self.name


@dataclass(frozen=True, slots=True)
class ServerValues:
    """The values of a server at one moment."""

    settings: Settings
    pid: int
    name: str
    num_workers: int
    listeners: list[ListenerHandle]
    workers: Mapping[int, WorkerHandle]


class AppName(str):
    """The name of the app. The master never imports the app, so this has no attributes of gunicorn's `server.app`."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        """Raise AttributeError, and say what to use."""
        raise AttributeError(f"server.app is a name and has no attribute {name!r}: use worker.wsgi in post_worker_init")


class ServerHandle:
    """The server, as users' hooks get it.

    In the master the attributes have the present values, and the methods (the commands and `HANDLERS`) are those of `Server`. In
    a forked worker the attributes have the values at the fork, nothing refers to the master, and the methods raise CommandError.
    Attributes that a hook sets stay, also for the hooks of workers that are forked later. Under --preload they only do if JSON
    can hold them, or if they were set before the mold was forked.

    Attributes:
        log: The server's logger, as `server.log.info("%s", ...)`.
        cfg: The settings in force, with gunicorn's names and meanings.
        settings: The settings in force.
        pid: The master's process.
        name, proc_name: The server's name.
        app: The name of the app; None for a user's own worker class.
        num_workers: How many workers are wanted.
        address: Of each listener, `(host, port)` or the path of a unix socket.
        LISTENERS: The listeners.
        WORKERS: The workers by pid.
    """

    OWN: ClassVar = frozenset(("_look", "_names", "_methods", "_unsent"))

    def __init__(self, look: Callable[[], ServerValues], names: Collection[str], methods: object | None) -> None:
        """*look* returns the values; *names* are those of the methods; *methods* is the object that has them, in the master."""
        self._look = look
        self._names = names
        self._methods = methods

    def for_worker(self) -> ServerHandle:
        """Return a handle for a worker that is about to be forked."""
        values = self._look()
        handle = ServerHandle(lambda: values, self._names, None)
        vars(handle).update(attributes_of(self))
        return handle

    @property
    def log(self) -> logging.Logger:
        """The server's logger."""
        return logs.logger

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._look().settings

    @property
    def cfg(self) -> HookSettings:
        """The settings in force, with gunicorn's names and meanings."""
        return HookSettings(self.settings)

    @property
    def pid(self) -> int:
        """The master's process."""
        return self._look().pid

    @property
    def name(self) -> str:
        """The server's name."""
        return self._look().name

    proc_name = name

    @property
    def app(self) -> AppName | None:
        """The name of the app."""
        return None if self.settings.app is None else AppName(self.settings.app)

    @property
    def num_workers(self) -> int:
        """How many workers are wanted."""
        return self._look().num_workers

    @property
    def address(self) -> list[Any]:
        """The system's name for each listener."""
        return [one.name for one in self._look().listeners]

    @property
    def LISTENERS(self) -> list[ListenerHandle]:  # noqa: N802 - gunicorn's name
        """The listeners."""
        return self._look().listeners

    @property
    def WORKERS(self) -> Mapping[int, WorkerHandle]:  # noqa: N802 - gunicorn's name
        """The workers by pid."""
        return self._look().workers

    def __getattr__(self, name: str) -> Any:
        """Return a method."""
        if name.startswith("_") or name not in self._names:
            raise missing_attribute(self, "the server", name, INSTEAD)
        return partial(_refuse, name) if self._methods is None else getattr(self._methods, name)


def _refuse(name: str, *_: object, **__: object) -> NoReturn:
    raise CommandError(f"server.{name} can be called in the master only, and this is a worker", "refused")


class Present:
    """Returns the present values of a server, for its handle. In the master."""

    def __init__(self, state: MasterContext, pool: Pool, listeners: Listeners, children: Mapping[int, Child]) -> None:
        self._state, self._pool, self._listeners, self._children = state, pool, listeners, children

    def __call__(self) -> ServerValues:
        """Return the values."""
        state, scheme = self._state, self._state.scheme
        return ServerValues(
            settings=state.settings,
            pid=state.pid,
            name=state.name,
            num_workers=self._pool.wanted,
            listeners=[ListenerHandle(one.address(scheme), one.sock.getsockname()) for one in self._listeners],
            workers={one.pid: one.handle for one in self._children.values() if one.id != MOLD and one.pid is not None},
        )


class UserHooks(Observer):
    """Runs those hooks of a user's configuration that gunicorn calls in the master. An exception in a hook is logged."""

    def __init__(self, state: MasterContext, server: ServerHandle) -> None:
        self._state, self._server = state, server

    def _run(self, name: str, *arguments: object, keep: bool = False) -> None:
        run_hook(self._state.hooks, name, self._server, *arguments, keep=keep)

    def starting(self) -> None:
        """Run nworkers_changed with the first number, as gunicorn does, and on_starting."""
        self._run("nworkers_changed", self._server.num_workers, None)
        self._run("on_starting", keep=True)

    def announced(self) -> None:
        """Run when_ready."""
        self._run("when_ready")

    took_over = announced

    def forking(self, child: Child) -> None:
        """Run pre_fork."""
        self._run("pre_fork", child.handle)

    def worker_exited(self, child: Child, status: int) -> None:
        """Run child_exit."""
        self._run("child_exit", child.handle)

    def scaled(self, wanted: int, before: int) -> None:
        """Run nworkers_changed."""
        self._run("nworkers_changed", wanted, before)

    def reload_began(self, generation: int) -> None:
        """Run on_reload."""
        self._run("on_reload")

    def upgrade_began(self) -> None:
        """Run pre_exec."""
        self._run("pre_exec")

    def stopped(self) -> None:
        """Run on_exit."""
        self._run("on_exit")

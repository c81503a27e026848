"""The settings as `cfg` of hooks shows them: under gunicorn's names, and with gunicorn's meanings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forkserve.base import privileges
from forkserve.base.errors import did_you_mean
from forkserve.config.addresses import parse_address
from forkserve.config.peers.gunicorn import SETTINGS
from forkserve.config.table import NAMES, TABLE
from forkserve.config.values import NONE

if TYPE_CHECKING:
    from forkserve.config.peers.rules import Rule
    from forkserve.config.settings import Settings


# The settings of gunicorn with another meaning here, or none.
OTHERS: Mapping[str, Rule] = {name: rule for name, rule in SETTINGS.items() if name not in NAMES and rule.to != "hook"}


@dataclass(frozen=True, slots=True)
class HookSetting:
    """One setting in `cfg.settings`."""

    name: str
    value: Any
    default: Any

    def get(self) -> Any:
        """Return the value."""
        return self.value


class HookSettings:
    """The settings under each name that a configuration file may use, as `cfg.workers` or `cfg.keepalive`.

    Where gunicorn shows another value for the same thing, so does this: lists for tuples, and 1 as `threads` of a worker that
    calls the app inline. A setting that only gunicorn has is that of ours which it is mapped to, or else what was given for it,
    or gunicorn's default.

    Raises AttributeError for any other name, with the nearest one.
    """

    __slots__ = ("_settings",)

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def threads(self) -> int:
        """How many requests of a WSGI app a worker runs at the same time."""
        return max(1, self._settings.threads)

    @property
    def worker_class_str(self) -> str:
        """The name of gunicorn's class of workers that is most like the present ones."""
        return self._settings.worker or ("gthread" if self._settings.threads else "sync")

    worker_class = worker_class_str

    @property
    def is_ssl(self) -> bool:
        """Whether the server speaks TLS."""
        return self._settings.certfile is not None

    @property
    def control_socket_disable(self) -> bool:
        """Whether `forkserve ctl` cannot reach the server."""
        return self._settings.control_socket == NONE

    @property
    def address(self) -> list[tuple[str, int] | str | int]:
        """The addresses of `bind`: host and port, the path of a unix socket, or a descriptor."""
        found = map(parse_address, self._settings.bind)
        return [(one.host, one.port) if one.kind == "tcp" else one.path if one.kind == "unix" else one.fd for one in found]

    @property
    def uid(self) -> int:
        """The user of workers, by number."""
        return (privileges.owner(self._settings) or (os.geteuid(), 0))[0]

    @property
    def gid(self) -> int:
        """The group of workers, by number."""
        return (privileges.owner(self._settings) or (0, os.getegid()))[1]

    @property
    def env(self) -> dict[str, str]:
        """The variables for workers; `raw_env` is a list of them."""
        return dict(self._settings.env)

    @property
    def raw_env(self) -> list[str]:
        """The variables for workers, as NAME=VALUE."""
        return [f"{name}={value}" for name, value in self._settings.env]

    @property
    def settings(self) -> Mapping[str, HookSetting]:
        """All settings by name, as `cfg.settings["workers"].value`."""
        defaults = {alias: TABLE[name].default for alias, name in NAMES.items()}
        defaults |= {name: rule.default for name, rule in OTHERS.items()}
        return {name: HookSetting(name, getattr(self, name), default) for name, default in defaults.items()}

    def __getattr__(self, name: str) -> Any:
        """Return a setting."""
        rule = OTHERS.get(name)
        if rule is not None and (rule.usual or rule.to not in TABLE):
            return _as_gunicorn(dict(self._settings.foreign).get(name, rule.default), rule.default)
        name_here = NAMES.get(name) if rule is None else rule.to
        if name_here is None:
            raise AttributeError(f"cfg has no setting {name!r}{did_you_mean(name, [*NAMES, *OTHERS])}", name=name, obj=self)
        value = getattr(self._settings, name_here)
        return list(value) if isinstance(value, tuple) else value

    def __repr__(self) -> str:
        return f"HookSettings({self._settings!r})"


def _as_gunicorn(value: object, default: object) -> object:
    """Return a number that was given as text as gunicorn shows it."""
    return int(value) if isinstance(value, str) and type(default) is int and value.isdecimal() else value

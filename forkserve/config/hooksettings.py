"""The settings as `cfg` of hooks shows them: under gunicorn's names, and with gunicorn's meanings. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from forkserve.base.errors import did_you_mean
from forkserve.config import table
from forkserve.config.table import TABLE

if TYPE_CHECKING:
    from forkserve.config.settings import Settings


NAMES: Final[Mapping[str, str]] = {**table.NAMES, "proc_name": "name"}
"""The names under which `cfg` has settings. As a setting `proc_name` is no alias: its value is changed to a valid `name`."""


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
    calls the app inline.

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
    def settings(self) -> Mapping[str, HookSetting]:
        """All settings by name, as `cfg.settings["workers"].value`."""
        return {alias: HookSetting(alias, getattr(self, alias), TABLE[name].default) for alias, name in NAMES.items()}

    def __getattr__(self, name: str) -> Any:
        """Return a setting."""
        if name not in NAMES:
            raise AttributeError(f"cfg has no setting {name!r}{did_you_mean(name, NAMES)}", name=name, obj=self)
        value = getattr(self._settings, NAMES[name])
        return list(value) if isinstance(value, tuple) else value

    def __repr__(self) -> str:
        return f"HookSettings({self._settings!r})"

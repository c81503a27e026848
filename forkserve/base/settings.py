"""The settings that the modules of this package read; `forkserve.config.settings.Settings` has them all. Pure."""

from __future__ import annotations

from typing import Any, Protocol


class AccountSettings(Protocol):
    """The settings that name the user and group of workers."""

    @property
    def user(self) -> str | None:
        """A name or a number; None: the master's."""

    @property
    def group(self) -> str | None:
        """A name or a number; None: the user's."""

    @property
    def initgroups(self) -> bool:
        """Whether workers get the user's supplementary groups."""

    @property
    def umask(self) -> int | None:
        """The umask of the master and all its processes; None: unchanged."""


class LogSettings(AccountSettings, Protocol):
    """The settings of the logs, and of the account that their files belong to."""

    @property
    def error_logfile(self) -> str:
        """A path; `-`: stderr."""

    @property
    def access_logfile(self) -> str | None:
        """A path; `-`: stdout; None: no access log."""

    @property
    def worker_stdout(self) -> Any:
        """A path, or another sink (prefork/system/sinks.py)."""

    @property
    def worker_stderr(self) -> Any:
        """A path, or another sink."""

    @property
    def log_format(self) -> str:
        """`text` or `json`."""

    @property
    def use_colors(self) -> bool | None:
        """Whether a terminal gets colours; None: as it can show them."""

    @property
    def log_level(self) -> str:
        """The lowest level that is logged."""

    @property
    def log_config(self) -> str | None:
        """The path of a configuration for `logging`."""

    @property
    def logconfig_dict(self) -> Any:
        """A mapping for `logging.config.dictConfig`; None or empty: no configuration."""

    @property
    def capture_output(self) -> bool:
        """Whether the output of workers goes to the error log."""

"""The settings of `--admin` as they must fit this machine: its packages, and the file with the token.

The token is in a file because arguments and variables of a process are shown to other users of the machine.
"""

from __future__ import annotations

import importlib.util
import os
import re
import stat
from typing import TYPE_CHECKING

from forkserve.base.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forkserve.config.settings import Settings

LEAST, MOST = 16, 1024  # characters of a token
_TOKEN = re.compile(r"[!-9;-~]+")  # what HTTP Basic can carry as a user or password without an encoding


def read_token(path: str) -> str:
    """Return the token: the only line of the file. In the master, with the rights of the user who started it.

    Raises:
        ConfigError: The file cannot be read, others may read it, or it holds no token.
    """
    try:
        # A pipe would make the master wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, encoding="ascii", errors="replace") as file:
            found = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(found):
                raise ConfigError(f"{path}: this is not a regular file")
            mode, token = stat.S_IMODE(found), file.read(MOST + 2).strip()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(f"{path}: other users may use this file (its mode is {mode:04o}): chmod 600 {path}")
    if not LEAST <= len(token) <= MOST or not _TOKEN.fullmatch(token):
        raise ConfigError(
            f"{path}: this is no token: write one line of {LEAST} to {MOST} visible ASCII characters without a colon, as"
            f" `openssl rand -hex 32` prints it"
        )
    return token


def complaints(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield setting and message for each setting of `--admin` that cannot work here."""
    if settings.admin is not None and importlib.util.find_spec("prometheus_client") is None:
        yield "admin", "needs more packages: pip install 'forkserve[ops]'"
    if settings.admin_token_file is not None:
        try:
            read_token(settings.admin_token_file)
        except ConfigError as error:
            yield "admin_token_file", str(error)

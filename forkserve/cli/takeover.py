"""Take over: the command `forkserve` in a program that takes the place of a master by an upgrade.

It uses the settings that the pre-flight has checked. It needs nothing that may have changed since: no configuration file, and no
parser of command lines. A failure here must not end the server.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from forkserve.base import console, startup
from forkserve.base.errors import ForkserveError
from forkserve.config import load as configuration
from forkserve.http.message import readers
from forkserve.server import Server, serve
from forkserve.web import loop

if TYPE_CHECKING:
    from collections.abc import Mapping


def missing_modules() -> list[str]:
    """Return the names of the optional modules that are installed, but could not be imported."""
    optional = {"uvloop": vars(loop)["uvloop"], "forkserve.http.message._head": vars(readers)["_head"]}
    return [name for name, module in optional.items() if module is None and find_spec(name)]


def main(checked: Mapping[str, Any]) -> int:
    """Serve with the checked settings (prefork/master/upgrade/checked.py); return the exit code."""
    startup.adopt_directory(checked["directory"])
    config = configuration.checked(checked["settings"], checked["given"], os.environ)
    troubles = [f"{name} cannot be imported any more: the server runs without it" for name in missing_modules()]
    if checked["objects"]:  # Python objects, which only the configuration file can make
        try:
            fresh = config.again() if config.again else config
            objects = {name: getattr(fresh.settings, name) for name in checked["objects"] if hasattr(fresh.settings, name)}
            config = replace(config, settings=replace(config.settings, **objects), hooks=fresh.hooks)
        except Exception as error:  # noqa: BLE001 - a user's file can fail in any way
            troubles.append(f"{error}; until a reload the server runs without {', '.join(checked['objects'])}")
    try:
        return serve(Server.from_config(config, troubles=troubles))
    except ForkserveError as error:
        console.say(*console.lines_of(error), level=logging.ERROR)
        return error.exit_code

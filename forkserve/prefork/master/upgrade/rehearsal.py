"""Rehearsal: what a pre-flight does at the point where a server begins to serve. It ends the process of the pre-flight."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import signal
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from forkserve.base import exits, handover, logfile, logs, privileges, startup, stdio
from forkserve.base.errors import ConfigError, ExitCode
from forkserve.base.libc import PDEATHSIG, prctl
from forkserve.base.records import RecordError, load
from forkserve.config import apps
from forkserve.prefork.control.server import kind_of
from forkserve.prefork.master.upgrade import checked
from forkserve.prefork.master.upgrade.state import MasterState
from forkserve.prefork.system.output import Outputs
from forkserve.prefork.system.poller import Poller
from forkserve.prefork.worker import leftovers
from forkserve.prefork.worker.boot import MASTERS_VARIABLES, why
from forkserve.prefork.worker.classes import load_mixins
from forkserve.version import __version__

if TYPE_CHECKING:
    from forkserve.base.startup import InheritedState
    from forkserve.config.load import Config
    from forkserve.config.settings import Settings
    from forkserve.prefork.control.endpoint import Endpoint
    from forkserve.prefork.policy.pool import Pool
    from forkserve.prefork.worker.worker import Worker


def rehearse(
    handed: InheritedState, worker_class: type[Worker], config: Config, pool: Pool, endpoint: type[Endpoint]
) -> NoReturn:
    """Read the state, load the app as the user that the workers run as, confirm this or print the error, and exit.

    What is checked is written down before the app loads, so that the app cannot change it: the new program runs it with all
    rights. Code after `run` in a user's own program is not run, since it expects that a server has ended.
    """
    code: int = ExitCode.UNEXPECTED
    settings = config.settings
    prctl(PDEATHSIG, signal.SIGKILL)  # it is of no use without the master
    try:
        generation = _read_state(handed.data, pool, endpoint)
        _open_logs(settings, generation)
        _write_down(handed, config)
        _load(worker_class, settings, generation)
        assert handed.confirm is not None
        confirmation = f"forkserve {__version__}, Python {platform.python_version()}"
        os.pwrite(handed.confirm, confirmation.encode("ascii", "replace"), 0)
        code = ExitCode.OK
    except BaseException as error:  # noqa: BLE001 - the app may raise anything; only an exit code leaves this process
        code, message, text = why(error)
        logs.write_stderr(f"{text.rstrip()}\n".encode("utf-8", "backslashreplace") if text else b"")  # the master reports it
        logs.write_stderr(f"forkserve: {message}\n".encode("utf-8", "backslashreplace"))
    finally:
        with contextlib.suppress(Exception):
            exits.run()
        stdio.flush()
        logfile.finish()
        os._exit(code)


def _read_state(data: bytes, pool: Pool, endpoint: type[Endpoint]) -> int:
    """Read the state; return the next generation. Raises ConfigError."""
    found = handover.decode(data, MasterState)
    if found.control is not None:
        if found.control.kind != kind_of(endpoint):
            raise ConfigError(f"the running server has another control endpoint, {found.control.kind}: restart the server")
        try:
            load(endpoint.STATE, found.control.endpoint)
        except RecordError as error:
            raise ConfigError(f"the control endpoint cannot be taken over ({error}): restart the server") from None
    pool.adopt(found.pool, time.monotonic())
    return pool.generations.newest + 1


def _open_logs(settings: Settings, generation: int) -> None:
    """Open the files that a start opens for writing: an error after the exec would end the server. Raises ConfigError."""
    logs.configure(dataclasses.replace(settings, capture_output=False))
    logs.identify("pre-flight", generation)
    Outputs(settings, Poller())


def _write_down(handed: InheritedState, config: Config) -> None:
    """Write what is checked, and the files that it was read from. Raises ConfigError if a module cannot be read any more."""
    if handed.checked is None:
        return
    modules = checked.loaded()
    read, looked_for = config.files()
    if main := getattr(sys.modules["__main__"], "__file__", None):
        read.append(main)
    values = {one.name: getattr(config.settings, one.name) for one in dataclasses.fields(config.settings)}
    plain = {name: value for name, value in values.items() if checked.is_plain(value)}
    read += [path for path, _, _ in modules.values()]
    stamps, fresh = checked.stamps(set(read), looked_for, startup.began_ns)
    flags = checked.python_flags(sys.orig_argv, sys.argv[1:])
    found = checked.CheckedProgram(
        hexversion=sys.hexversion,
        executable=sys.executable,
        words=sys.orig_argv,
        flags=flags or [],
        argv=sys.argv,
        path=startup.path,
        directory=startup.directory,
        start=None if config.given is None or flags is None else startup.resume_module,
        settings=plain,
        given=None if config.given is None else dict(config.given),
        objects=[*(values.keys() - plain.keys()), *config.hooks],
        stamps=stamps,
        fresh=fresh,
    )
    checked.write(handed.checked, found, modules)


def _load(worker_class: type[Worker], settings: Settings, generation: int) -> None:
    for name in MASTERS_VARIABLES:
        os.environ.pop(name, None)
    os.environ["FORKSERVE_GENERATION"] = str(generation)
    if not settings.preload:
        os.environ["FORKSERVE_WORKER_ID"] = "1"
    if privileges.drop(settings):
        prctl(PDEATHSIG, signal.SIGKILL)
    apps.prepare_process(settings)
    before = leftovers.Before.look() if settings.preload else None
    load_mixins(worker_class, settings.mixin).preload(settings)
    if before is not None:
        leftovers.refuse_threads(settings, before)

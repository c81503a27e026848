"""The sources of settings besides keywords: each yields a `Given` for each key that it has."""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from forkserve.base.errors import ConfigError
from forkserve.config.configfile import FoundFile
from forkserve.config.peers import uvicorn
from forkserve.config.spec import flag
from forkserve.config.table import FOREIGN_OPTIONS, NAMES, TABLE
from forkserve.config.translate import Given, Said, is_unset

PREFIX = "FORKSERVE_"
UVICORN_PREFIX = "UVICORN_"
# Variables with the prefix that are no settings: those set for workers, the one parsed as a command line, and those that
# Kubernetes sets in pods beside a service named forkserve.
FOREIGN = re.compile("FORKSERVE_(CMD_ARGS|WORKER_ID|GENERATION|SERVICE_HOST|SERVICE_PORT.*|PORT_[0-9]+_.*)")
COMMAND_LINE = "command line"
ADDRESSES = ("port", "bind", "uds", "fd", "base_port")


def first_said(file: FoundFile, weaker: Sequence[Sequence[Given]], stronger: Sequence[Sequence[Given]]) -> Said:
    """Return what is said of the sources themselves, before their keys are read."""
    said = Said()
    name = os.path.basename(file.origin)
    if file.peer:
        said.read.append(file.origin)
    said.read += dict.fromkeys(one.origin for source in stronger for one in source if one.peer and one.origin != COMMAND_LINE)
    if file.unused:
        said.others.append(
            f"{file.origin}: taken for variables of its own: {', '.join(file.unused)} (in a forkserve.conf.py they are settings)"
        )
    if file.beside:
        said.others.append(f"{file.beside} is ignored, since there is a {name}; --config chooses")
    usual, own = weaker
    said.others += _conflicts(usual, own, {NAMES.get(one.key) for source in stronger for one in source})
    return said


def _conflicts(usual: Iterable[Given], file: Sequence[Given], stronger: Collection[str | None]) -> Iterator[str]:
    """Yield a line for each well-known variable that has another value than the file, which wins."""
    for one in usual:
        same = ADDRESSES if one.key == "port" else (one.key,)
        rivals = [other for other in file if NAMES.get(other.key) in same and other.value is not None]
        equal = any(str(one.value) in (str(item).rpartition(":")[2] for item in _each(other.value)) for other in rivals)
        if rivals and not equal and not any(name in stronger for name in same):
            yield f"{one.label}={one.value} does not count: {rivals[0].label} wins"


def _each(value: object) -> Iterable[object]:
    return value if isinstance(value, list | tuple) else str(value).split(",")


def of_file(file: FoundFile) -> Iterator[Given]:
    """Yield the keys of the configuration file."""
    for key, value in (file.found or {}).items():
        if key != "config":
            yield Given(key, value, f"{key} in {file.origin}", file.origin, file.peer)
        elif not file.peer:
            raise ConfigError(f"{key} in {file.origin}: a configuration file cannot name another")


def of_line(options: Mapping[str, object], variable: str, *, peer: str = "") -> Iterator[Given]:
    """Yield the options of a command line, or of the *variable* that has them, but for empty ones."""
    for key, value in options.items():
        if is_unset(key, value) or (isinstance(value, tuple) and all(is_unset(key, part) for part in value)):
            continue
        name = next(one for one in FOREIGN_OPTIONS[key][0] if one.startswith("--")) if key in FOREIGN_OPTIONS else flag(key)
        yield Given(key, value, f"{name} in {variable}" if variable else name, variable or COMMAND_LINE, peer)


def environment(environ: Mapping[str, str]) -> Iterator[Given]:
    """Yield the variables FORKSERVE_<NAME>."""
    for variable, value in environ.items():
        linked = variable == "FORKSERVE_PORT" and value.startswith("tcp://")  # Kubernetes as well
        key = variable.removeprefix(PREFIX).lower()
        if variable.startswith(PREFIX) and not (linked or is_unset(key, value) or FOREIGN.fullmatch(variable)):
            yield Given(key, value, variable, variable)


def of_uvicorn(environ: Mapping[str, str]) -> Iterator[Given]:
    """Yield the variables UVICORN_<NAME>; several values are separated by blanks."""
    for name in uvicorn.OPTIONS:
        value = environ.get(variable := UVICORN_PREFIX + name.upper(), "")
        if variable in environ and not is_unset(name, value):
            many = name in NAMES and TABLE[NAMES[name]].kind.many
            yield Given(name, value.split() if many else value, variable, variable, "uvicorn")


def well_known(environ: Mapping[str, str]) -> Iterator[Given]:
    """Yield the variables that platforms set."""
    for name, spec in TABLE.items():
        if spec.variable in environ and not is_unset(name, value := environ[spec.variable]):
            yield Given(name, value, spec.variable, spec.variable)

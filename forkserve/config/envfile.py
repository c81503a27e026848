"""Env files: NAME=VALUE lines for the workers' environment, of --env-file, and of `.env` and `.flaskenv` under --reload.

The lines mean what they mean to the library python-dotenv: an app that loads the same file with it must find the same values.
"""

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Final, NamedTuple

from forkserve.base.errors import ConfigError
from forkserve.base.logs import logger, printable

DEVELOPMENT: Final = (".env", ".flaskenv")
"""The files that are read under --reload. The first has priority, as with Flask."""
_OURS: Final = "FORKSERVE_"

# No group is possessive: before Python 3.11.5 those that contain alternatives match wrongly.
_BINDING: Final = re.compile(
    r"""
    (?: export [^\S\n]++ | (?! export [^\S\n]) ) (?: '(?P<quoted_name>[^']+)' | (?P<name>(?!')[^=\#\s]++) ) [^\S\n]*+
    (?: = (?: [^\S\n]*+ '(?P<single>(?: [^'\\]++ | \\' | \\(?!') )*)' | [^\S\n]*+ "(?P<double>(?: [^"\\]++ | \\" | \\(?!") )*)"
              | (?P<bare>[^\S\n]*+ (?!['"]) [^\n]*+) ) )?
    """,
    re.VERBOSE,
)
_NOTHING: Final = re.compile(r"(?: \s+ | \#[^\n]* )+", re.VERBOSE)
_END: Final = re.compile(r"(?: [^\S\n]*+ \#[^\n]*+ )? [^\S\n]*+ (?: \n | \Z )", re.VERBOSE)
_REST: Final = re.compile(r"[^\n]*\n?")
_COMMENT: Final = re.compile(r"\s+#.*")
_ESCAPE: Final = re.compile(r"\\([\\'\"abfnrtv])")
_ESCAPES: Final = dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True))
_REFERENCE: Final = re.compile(r"\$\{([^}:]*)(?::-([^}]*))?\}")


class Line(NamedTuple):
    """One line: its number, name and value. It is no NAME=VALUE line if it has no name; a name alone has no value."""

    number: int
    name: str | None
    value: str | None


def parse(text: str) -> Iterator[Line]:
    """Yield the lines of a file, without blank lines and comments. A quoted value may have several. Pure."""
    place = 0
    while True:
        if blank := _NOTHING.match(text, place):
            place = blank.end()
        if place >= len(text):
            return
        number = text.count("\n", 0, place) + 1
        match = _BINDING.match(text, place)
        if match:
            place = match.end()
        if match and (end := _END.match(text, place)):
            name, value = match["quoted_name"] or match["name"], _value(match)
            possible = "=" not in name and "\0" not in name + (value or "")  # for the system
            yield Line(number, name, value) if possible else Line(number, None, None)
        else:
            end = _REST.match(text, place)
            yield Line(number, None, None)
        assert end is not None
        place = end.end()


def _value(match: re.Match[str]) -> str | None:
    if match["single"] is not None:
        return re.sub(r"\\([\\'])", r"\1", match["single"])
    if match["double"] is not None:
        return _ESCAPE.sub(lambda found: _ESCAPES.get(found[1], found[1]), match["double"])
    return None if match["bare"] is None else _COMMENT.sub("", match["bare"]).strip()


def expand(lines: Iterable[Line], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of lines. `${NAME}` and `${NAME:-default}` are replaced; the environment wins over earlier lines."""
    found: dict[str, str] = {}
    for line in lines:
        if line.value is None:
            found.pop(line.name or "", None)
        elif line.name is not None:
            found[line.name] = _REFERENCE.sub(partial(_referred, {**found, **environ}), line.value)
    return found


def _referred(known: Mapping[str, str], reference: re.Match[str]) -> str:
    return known.get(reference[1], reference[2] or "")


def _read(path: str) -> list[Line]:
    """Read a file. It is never waited for, as a pipe would be: workers read the file again.

    Raises OSError and UnicodeDecodeError.
    """
    with open(path, encoding="utf-8-sig", opener=_open_regular) as file:
        return list(parse(file.read()))


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    if stat.S_ISREG(mode := os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "it is not a regular file", path)


def read_env_file(path: str | None) -> list[Line]:
    """Read the file of --env-file. Raises ConfigError, with file and line, for a line that is not NAME=VALUE."""
    if path is None:
        return []
    try:
        lines = _read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {_reason(error)}") from None
    for line in lines:
        if line.value is None:
            raise ConfigError(f"{path}, line {line.number}: this is not a NAME=VALUE line")
    return lines


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def read_development_files(folder: str, environ: Mapping[str, str], *, warns: bool = False) -> dict[str, str]:
    """Return the variables of `.env` and `.flaskenv` in a directory, without those of forkserve and those that are set.

    A line that is not valid, and a file that cannot be read, are ignored: python-dotenv ignores them too.

    Args:
        folder: The directory.
        environ: The environment.
        warns: Log what is ignored.
    """
    found: dict[str, str] = {}
    for path in (os.path.join(folder, name) for name in DEVELOPMENT):
        try:
            lines = _read(path)
        except (FileNotFoundError, IsADirectoryError):  # a virtual environment may have the name
            continue
        except (OSError, UnicodeDecodeError) as error:
            lines = []
            if warns:
                logger.warning("%s cannot be read, and is ignored: %s", printable(path), _reason(error))
        values = expand(lines, {**found, **environ})
        if warns:
            _warn(path, lines)
        found = {**values, **found}
    return {name: value for name, value in found.items() if name not in environ and not name.startswith(_OURS)}


def _warn(path: str, lines: Iterable[Line]) -> None:
    lines = list(lines)
    if wrong := [str(line.number) for line in lines if line.name is None]:
        logger.warning("%s: not a NAME=VALUE line, ignored: line %s", printable(path), ", ".join(wrong))
    if ours := [line.name for line in lines if line.name is not None and line.name.startswith(_OURS)]:
        names = printable(", ".join(ours))
        logger.warning("%s is for the app only: %s ignored; use the environment or forkserve.toml", printable(path), names)

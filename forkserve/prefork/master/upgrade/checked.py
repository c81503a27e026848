"""What a pre-flight has checked: the code of forkserve and other modules, the settings, and the command line.

The pre-flight writes it to a nameless file, and seals the file before any code of the app runs. The master starts Python with
this file. Until its loop runs, the new program imports from the file only, and reads no configuration. So no change on disk can
stop it there. Only the interpreter, its standard library and modules in C must be unchanged.

The file has three parts, with a NUL between them: the Python code that the new program begins with (FIRST), the `CheckedProgram`
as JSON, and the code of the modules.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import marshal
import os
import pkgutil
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader, SourcelessFileLoader
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, cast

from forkserve.base.errors import ConfigError
from forkserve.prefork.master.upgrade import modules

if TYPE_CHECKING:
    from types import CodeType

    from forkserve.prefork.master.upgrade.modules import Modules

# The argument of -c. It must stay the same in all versions, since the program that passes it may be an older one.
BEGIN: Final = "import posix as p;f={};d=p.pread(f,p.fstat(f).st_size,0);p.close(f);exec(d.partition(b'\\0')[0])"
# The code that BEGIN executes. `-c` puts the working directory in front of sys.path: nothing may be imported from there. If a
# link was switched after the pre-flight, this may be another Python. That one runs the command line instead.
FIRST: Final = f"""
import sys
sys.path[:] = [one for one in sys.path if one]
import json, os
checked = json.loads(d.split(b"\\0", 2)[1])
if sys.hexversion != checked["hexversion"]:
    os.execv(checked["executable"], checked["words"])
import marshal
modules, scope = marshal.loads(d.split(b"\\0", 2)[2]), {{"__name__": "{modules.__name__}"}}
exec(modules[scope["__name__"]][2], scope)
scope["begin"](checked, modules)
"""
SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL if sys.platform == "linux" else 0
LOADERS: Final = (SourceFileLoader, SourcelessFileLoader)  # of modules in Python
COARSE: Final = 20_000_000  # nanoseconds by which a file's time of change may be behind the clock

Stamp = list[int] | None


@dataclass(frozen=True, slots=True)
class CheckedProgram:
    """A program that a pre-flight has checked.

    Attributes:
        hexversion: The version of its Python.
        executable: Its Python.
        words: Its command line.
        flags: Python's own flags in the command line.
        argv: Its `sys.argv`.
        path: Its `sys.path`.
        directory: Its working directory; None if that is gone.
        start: The module whose `main` can start from the settings; None if only the command line can be run again.
        settings: The settings that are plain values.
        given: The sources of the settings; None if they cannot be read again.
        objects: The names of settings and hooks that are Python objects, and so are not in `settings`.
        stamps: The state of each file that was read or looked for, by its path.
        fresh: The files that may have changed after they were read.
    """

    hexversion: int
    executable: str
    words: list[str]
    flags: list[str]
    argv: list[str]
    path: list[str]
    directory: str | None
    start: str | None
    settings: dict[str, Any]
    given: dict[str, Any] | None
    objects: list[str]
    stamps: dict[str, Stamp]
    fresh: list[str]

    def changed(self, before: CheckedProgram | None) -> str | None:
        """Return a file that has changed since it was checked, or may have changed; None if there is none.

        A fresh file is unchanged if the previous pre-flight (`before`) found it in the same state: the clock of its file system
        may differ from ours.
        """
        fresh = (path for path in self.fresh if before is None or before.stamps.get(path) != self.stamps[path])
        return next((path for path, stamp in self.stamps.items() if stamp_of(path) != stamp), next(fresh, None))

    def arguments(self, descriptor: int) -> list[str]:
        """Return the command line that starts from the file of this descriptor."""
        return [self.executable, *self.flags, "-c", BEGIN.format(descriptor), *self.argv[1:]]


def stamp_of(path: str) -> Stamp:
    """Return values that differ between two states of a file; None if there is no file."""
    with contextlib.suppress(OSError, ValueError):
        found = os.stat(path)
        return [found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns]
    return None


def stamps(read: Collection[str], looked_for: Iterable[str], since: int) -> tuple[dict[str, Stamp], list[str]]:
    """Return the stamps of the files that were read or looked for, and the list of those that are fresh.

    A file that has changed after `since` (nanoseconds; the start of this process) may differ from what was read.
    """
    found = {path: stamp_of(path) for path in (*looked_for, *read)}
    return found, [path for path, stamp in found.items() if (stamp[3] >= since - COARSE if stamp else path in read)]


def is_plain(value: object) -> bool:
    """Whether a setting is a plain value that JSON can hold."""
    return all(map(is_plain, value)) if isinstance(value, tuple) else value is None or isinstance(value, str | int | float)


def python_flags(words: list[str], arguments: list[str]) -> list[str] | None:
    """Return Python's own flags in a command line; None if the module or script in it has other arguments than these.

    Then another program runs ours, as in `coverage run -m forkserve`.
    """
    flags, rest = [], words[1:]
    while rest and rest[0].startswith("-") and rest[0] != "-":
        letters = "" if rest[0].startswith("--") else rest[0][1:]
        at = next((at for at, letter in enumerate(letters) if letter in "cmWX"), len(letters))  # flags with a value
        with_next = rest[0] == "--check-hash-based-pycs" or at == len(letters) - 1
        if letters[at : at + 1] in ("c", "m"):
            flags += [f"-{letters[:at]}"] * bool(at)
            return flags if rest[1 + with_next :] == arguments else None
        flags += rest[: 1 + with_next]
        rest = rest[1 + with_next :]
    return flags if rest[1:] == arguments else None


def loaded() -> Modules:
    """Return the Python modules that this process has loaded, except for the standard library's, and all modules of forkserve.

    Raises ConfigError if a module's file cannot be read any more.
    """
    ours = sys.modules[__name__.partition(".")[0]]
    names = [one.name for one in pkgutil.walk_packages(ours.__path__, f"{ours.__name__}.") if not one.name.endswith("__main__")]
    specs = [find_spec(name) for name in names] + [getattr(module, "__spec__", None) for module in list(sys.modules.values())]
    found: dict[str, tuple[str, bool, CodeType]] = {}
    for spec in specs:
        if not isinstance(spec, ModuleSpec) or spec.origin is None or type(spec.loader) not in LOADERS or spec.name in found:
            continue
        if (top := spec.name.partition(".")[0]) in sys.stdlib_module_names or top == "__mp_main__":
            continue
        try:
            code = cast("SourceFileLoader", spec.loader).get_code(spec.name)
        except FileNotFoundError:
            if top == ours.__name__:
                raise ConfigError(f"{spec.origin} is gone") from None
            continue  # a module of the app, which may have removed it
        except Exception as error:
            raise ConfigError(f"{spec.origin} cannot be loaded any more: {error}") from error
        if code is not None:
            found[spec.name] = (spec.origin, spec.submodule_search_locations is not None, code)
    return found


def write(descriptor: int, checked: CheckedProgram, code: Modules) -> None:
    """Write the file, seal it, and close the descriptor. In the pre-flight."""
    parts = FIRST.encode(), json.dumps(dataclasses.asdict(checked)).encode("ascii"), marshal.dumps(dict(code))
    with open(descriptor, "wb") as file:
        file.write(b"\0".join(parts))
        file.flush()
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)


def read(descriptor: int) -> CheckedProgram | None:
    """Return what the pre-flight has written; None if its version of forkserve does not write all of this. In the master."""
    if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & SEALS != SEALS:
        return None
    found = json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0).split(b"\0", 2)[1])
    known = {field.name for field in dataclasses.fields(CheckedProgram)}
    return CheckedProgram(**{name: value for name, value in found.items() if name in known}) if known <= found.keys() else None

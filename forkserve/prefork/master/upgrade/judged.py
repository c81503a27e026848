"""What a pre-flight has judged, for the program that takes over: forkserve's modules and others, the settings, the command line.

The pre-flight writes it into a file without a name and seals that, before any code of the app runs; the master starts Python
with it. So nothing that is on disk by then can keep the new program from its loop: what it imports until then comes from
here, and it reads no configuration. Only an interpreter, its standard library and modules in C must be as they were.

The file is a line of Python that the new program begins with, its `Judged` as JSON, and the code of the modules, with a NUL
between them.
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

# Told to Python by -c. It must stand as it is for all versions, since the program that runs it may be an older one.
BEGIN: Final = "import posix as p;f={};d=p.pread(f,p.fstat(f).st_size,0);p.close(f);exec(d.partition(b'\\0')[0])"
# What that executes. What `-c` has put in front of the path must not be where it imports from. Another Python than the one
# that has judged, as a link was switched meanwhile, runs the command line.
FIRST: Final = f"""
import sys
sys.path[:] = [one for one in sys.path if one]
import json, os
judged = json.loads(d.split(b"\\0", 2)[1])
if sys.hexversion != judged["hexversion"]:
    os.execv(judged["executable"], judged["words"])
import marshal
modules, scope = marshal.loads(d.split(b"\\0", 2)[2]), {{"__name__": "{modules.__name__}"}}
exec(modules[scope["__name__"]][2], scope)
scope["begin"](judged, modules)
"""
SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL if sys.platform == "linux" else 0
LOADERS: Final = (SourceFileLoader, SourcelessFileLoader)  # of modules in Python
COARSE: Final = 20_000_000  # nanoseconds that the time of a change may be behind the clock

Stamp = list[int] | None


@dataclass(frozen=True, slots=True)
class Judged:
    """What is known of the program that has been judged.

    `start` is the module whose `main` goes on from the settings alone, None where only the command line can be run again;
    `given` what the settings were read from, if that can be read again; `unsaid` the names of settings and hooks that are
    Python objects, and so are not in `settings`; `fresh` the files that may have changed after they were read.
    """

    hexversion: int
    executable: str
    words: list[str]  # the command line
    flags: list[str]  # those of Python's own in it
    argv: list[str]
    path: list[str]
    directory: str | None
    start: str | None
    settings: dict[str, Any]
    given: dict[str, Any] | None
    unsaid: list[str]
    stamps: dict[str, Stamp]
    fresh: list[str]

    def changed(self, before: Judged | None) -> str | None:
        """Return a file that is not any more, or may not be, as it was when it was judged; None if there is none.

        A fresh one is good if it was the same for the pre-flight before: the clock of its file system may be another one.
        """
        fresh = (path for path in self.fresh if before is None or before.stamps.get(path) != self.stamps[path])
        return next((path for path, stamp in self.stamps.items() if stamp_of(path) != stamp), next(fresh, None))

    def arguments(self, descriptor: int) -> list[str]:
        """Return the command line that goes on from what the descriptor holds."""
        return [self.executable, *self.flags, "-c", BEGIN.format(descriptor), *self.argv[1:]]


def stamp_of(path: str) -> Stamp:
    """Return what distinguishes one state of a file from another; None if there is no file."""
    with contextlib.suppress(OSError, ValueError):
        found = os.stat(path)
        return [found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns]
    return None


def stamps(read: Collection[str], looked_for: Iterable[str], since: int) -> tuple[dict[str, Stamp], list[str]]:
    """Return the stamps of files that were read, and of those that may have been missing; and which are fresh.

    What has changed after `since` (nanoseconds), when this process began, may not be what was read.
    """
    found = {path: stamp_of(path) for path in (*looked_for, *read)}
    return found, [path for path, stamp in found.items() if (stamp[3] >= since - COARSE if stamp else path in read)]


def is_plain(value: object) -> bool:
    """Whether a setting is a plain value, and not a function or a file."""
    return all(map(is_plain, value)) if isinstance(value, tuple) else value is None or isinstance(value, str | int | float)


def python_flags(words: list[str], arguments: list[str]) -> list[str] | None:
    """Return the flags of Python's own in a command line; None if what it runs has other arguments than these.

    Then that is not ours, but something that runs us, as `coverage run -m forkserve`.
    """
    flags, rest = [], words[1:]
    while rest and rest[0].startswith("-") and rest[0] != "-":
        letters = "" if rest[0].startswith("--") else rest[0][1:]
        at = next((at for at, letter in enumerate(letters) if letter in "cmWX"), len(letters))  # those with a value
        with_next = rest[0] == "--check-hash-based-pycs" or at == len(letters) - 1
        if letters[at : at + 1] in ("c", "m"):
            flags += [f"-{letters[:at]}"] * bool(at)
            return flags if rest[1 + with_next :] == arguments else None
        flags += rest[: 1 + with_next]
        rest = rest[1 + with_next :]
    return flags if rest[1:] == arguments else None


def loaded() -> Modules:
    """Return the modules in Python that this process has loaded, without the standard library's, and all of forkserve's.

    Raises ConfigError for one whose file cannot be read any more.
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


def write(descriptor: int, judged: Judged, code: Modules) -> None:
    """Write it, for good, and close the descriptor. In the pre-flight."""
    parts = FIRST.encode(), json.dumps(dataclasses.asdict(judged)).encode("ascii"), marshal.dumps(dict(code))
    with open(descriptor, "wb") as file:
        file.write(b"\0".join(parts))
        file.flush()
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)


def read(descriptor: int) -> Judged | None:
    """Return what the pre-flight has written; None if that was another version, which does not know of it. In the master."""
    if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & SEALS != SEALS:
        return None
    found = json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0).split(b"\0", 2)[1])
    known = {field.name for field in dataclasses.fields(Judged)}
    return Judged(**{name: value for name, value in found.items() if name in known}) if known <= found.keys() else None

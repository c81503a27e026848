"""What a user may have meant by a module that does not exist, for the message about it.

Directories are read, and nothing is imported.
"""

import os
import sys
from collections.abc import Iterator

from forkserve.base.errors import did_you_mean

MOST = 1000  # entries of a directory that are looked at
SOURCES = ("src", "lib")  # directories of importable files, as opposed to those of a project
USUAL = ": check the name, or give its directory with --chdir"


def remedy(module: str) -> str:
    """Return what to write instead of a module that could not be imported, as the end of a sentence.

    Call it in the process that tried the import, in the app's directory.
    """
    parent, dot, attr = module.rpartition(".")
    if dot and attr.isidentifier() and hasattr(sys.modules.get(parent), attr):
        return f" (did you mean '{parent}:{attr}'?)"
    first = module.partition(".")[0]
    here = [name for name, _ in modules(".")]
    if first not in here:
        for folder in folders("."):
            found = dict(modules(folder)).get(first)
            if found is not None:
                option = "--pythonpath" if folder in SOURCES else "--chdir"
                return f", but {folder}/{found} exists: add {option} {folder}"
    return (not dot and did_you_mean(first, here)) or USUAL


def folders(directory: str) -> Iterator[str]:
    """Yield the names of the directories in a directory, those of sources first."""
    names = [entry.name for entry in _entries(directory) if entry.is_dir()]
    yield from sorted(names, key=lambda name: (name not in SOURCES, name))


def modules(directory: str) -> Iterator[tuple[str, str]]:
    """Yield the modules and packages of a directory: the name, and the file or directory that it is."""
    for entry in _entries(directory):
        name = entry.name.removesuffix(".py")
        if not name.isidentifier():
            continue
        if name != entry.name:
            yield name, entry.name
        elif os.path.exists(os.path.join(entry.path, "__init__.py")):
            yield entry.name, entry.name + "/"


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as found:
            return [entry for entry, _ in zip(found, range(MOST), strict=False) if not entry.name.startswith((".", "__"))]
    except OSError:
        return []

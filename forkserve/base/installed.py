"""Packages that were installed or uninstalled since the interpreter started.

`site` reads `.pth` files once, at the start; `pip install -e` writes one. A worker is forked from a process that may have started
long ago, and must find what a fresh interpreter would find. So the work of `site` is repeated for the files that have changed.
Modules that the master has loaded for itself (such as click) are not touched: an upgrade replaces those.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import site
import sys
from collections.abc import Iterator
from typing import NamedTuple

IMPORT = re.compile(r"\bimport\s+(\w+)")


class _Pth(NamedTuple):
    """A `.pth` file: its lines, and the modules beside it that it imports (finders of editable installs), with their states."""

    lines: tuple[str, ...]
    modules: tuple[tuple[str, int, int], ...]

    def paths(self, folder: str) -> list[str]:
        """Return the directories that it adds to the path."""
        found = (line.rstrip() for line in self.lines if line.strip() and not line.startswith(("#", "import ", "import\t")))
        return [os.path.abspath(os.path.join(folder, line)) for line in found]


_Files = dict[tuple[str, str], _Pth]  # by directory and name


def refresh() -> None:
    """Let this process import what a fresh interpreter could import. In a worker or mold, before the app is loaded.

    It may be called again: it always compares with the start of the interpreter.
    """
    importlib.invalidate_caches()
    sites = folders()
    for number, folder in enumerate(sites):
        if folder not in sys.path and os.path.isdir(folder):  # made by the first installation for this user
            places = [sys.path.index(later) for later in sites[number:] if later in sys.path]
            sys.path.insert(min(places, default=len(sys.path)), folder)
    now = _look()
    changed = sorted(place for place in _at_start.keys() | now.keys() if _at_start.get(place) != now.get(place))
    kept = {path for (folder, _), one in now.items() for path in one.paths(folder)}
    kept.update(map(os.path.abspath, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    before = list(sys.path)
    for place in changed:
        for one in filter(None, (_at_start.get(place), now.get(place))):
            gone = set(one.paths(place[0])) - kept
            sys.path[:] = [path for path in sys.path if path not in gone]
            _remove_finders({name for name, *_ in one.modules})
    for place in changed:
        if place in now:
            site.addpackage(*place, None)
    for folder in {folder for folder, _ in changed}.intersection(before):
        _sort(folder, [path for place in sorted(now) if place[0] == folder for path in now[place].paths(folder)])


def _sort(folder: str, paths: list[str]) -> None:
    """Move the entries that a directory's `.pth` files add behind it, in their order, as in a fresh interpreter."""
    place = sys.path.index(folder) + 1
    rest = sys.path[place:]
    added = list(dict.fromkeys(path for path in paths if path in rest))
    sys.path[place:] = [*added, *(path for path in rest if path not in added)]


def _remove_finders(modules: set[str]) -> None:
    """Remove what these modules have put where imports look, and the modules, so that they can do it again."""
    if not modules:
        return
    hooks = [hook for hook in sys.path_hooks if getattr(hook, "__module__", None) in modules]
    sys.meta_path[:] = [one for one in sys.meta_path if getattr(one, "__module__", None) not in modules]
    sys.path_hooks[:] = [one for one in sys.path_hooks if one not in hooks]
    if hooks:  # a name on the path may stand for such a finder
        sys.path_importer_cache.clear()
    for name in modules:
        sys.modules.pop(name, None)


def _look() -> _Files:
    found: _Files = {}
    for folder in folders():
        try:
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            continue
        except OSError:  # not readable for this user: assume that nothing has changed
            found.update({place: one for place, one in _at_start.items() if place[0] == folder})
            continue
        for name in names:
            if name.endswith(".pth") and not name.startswith("."):
                with contextlib.suppress(OSError), open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
                    lines = tuple(file.read().splitlines())
                    found[folder, name] = _Pth(lines, tuple(_modules(folder, lines)))
    return found


def _modules(folder: str, lines: tuple[str, ...]) -> Iterator[tuple[str, int, int]]:
    for line in lines:
        for name in IMPORT.findall(line) if line.startswith(("import ", "import\t")) else ():
            with contextlib.suppress(OSError):
                state = os.stat(os.path.join(folder, f"{name}.py"))
                yield name, state.st_mtime_ns, state.st_size


def pth_folders() -> list[str]:
    """Return the directories that the present `.pth` files add to the path. In any process."""
    return [path for (folder, _), one in _look().items() for path in one.paths(folder)]


def folders() -> list[str]:
    """Return the directories whose `.pth` files `site` reads."""
    if sys.flags.no_site:
        return []
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return list(dict.fromkeys(map(os.path.abspath, [*user, *site.getsitepackages()])))


_at_start: _Files = {}
_at_start = _look()

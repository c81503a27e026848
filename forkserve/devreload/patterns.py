"""Patterns: which files belong to a project, and which of them matter to a development reload. Pure.

A glob without a slash is a name, of a file or of any directory above it, wherever that is: `node_modules`, `*.pyc`.
One with a slash is a path below the project's directory, or an absolute one: `static/**/*.css`. `*` and `?` stop at a
slash, and `**` does not. What matches a directory matches all that is below it. Exclusion always wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

INCLUDE: Final = ("*.html", "*.jinja*", ".env")
EXCLUDE: Final = (
    *(".git", ".hg", ".svn", ".jj"),
    *("__pycache__", "*.py[cod]", ".cache", ".*_cache", ".hypothesis", ".tox", ".nox", ".eggs", "*.egg-info"),
    *(".venv", "venv", "site-packages", "dist-packages", "node_modules"),
    *(".idea", ".vscode", "*~", ".*.sw?", ".#*", "#*#", "*___jb_*___"),  # what editors keep beside the files
)
MODULES: Final = (".py", ".so")  # what modules are loaded from
_WORDS: Final = re.compile(r"(\*\*/)|(/\*\*$)|(\*\*)|(\*)|(\?)|\[(!?)([^]/]+)\]")


class _Globs:
    """Several globs, as one pattern for relative paths and one for absolute ones."""

    def __init__(self, globs: Iterable[str]) -> None:
        both = list(globs)
        self._absolute = _compile(glob for glob in both if glob.startswith("/"))
        self._relative = _compile(glob for glob in both if not glob.startswith("/"))

    def match(self, path: str, relative: str | None) -> bool:
        """Whether one of them matches a path, or a directory above it."""
        return bool(self._absolute.fullmatch(path) or (relative and self._relative.fullmatch(relative)))


def _compile(globs: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(_translate, globs)) or "(?!)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Rules:
    """Which files of a project matter.

    Args:
        folders: The project's directories, absolute: as they were given, and as they really are.
        include: Globs of files that matter though no module was loaded from them.
        exclude: Globs of what never matters.
        extra: Absolute globs of files that matter wherever they are.
    """

    folders: Sequence[str]
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    extra: Sequence[str] = ()
    _included: _Globs = field(init=False, repr=False)
    _excluded: _Globs = field(init=False, repr=False)
    _extra: _Globs = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Compile the globs."""
        object.__setattr__(self, "_included", _Globs((*INCLUDE, *self.include)))
        object.__setattr__(self, "_excluded", _Globs((*EXCLUDE, *self.exclude)))
        object.__setattr__(self, "_extra", _Globs(self.extra))

    def below(self, path: str) -> str | None:
        """Return an absolute path as it is below the project's directory; None if it is elsewhere."""
        for folder in self.folders:
            if path.startswith(folder.rstrip("/") + "/"):
                return path[len(folder.rstrip("/")) + 1 :]
        return None

    def excluded(self, path: str) -> bool:
        """Whether a file or directory is not to be looked at."""
        return self._excluded.match(path, self.below(path))

    def holds(self, path: str) -> bool:
        """Whether a file or directory belongs to the project."""
        return self.below(path) is not None and not self.excluded(path)

    def included(self, path: str) -> bool:
        """Whether a file matters though no module was loaded from it."""
        return self._extra.match(path, None) or (self.holds(path) and self._included.match(path, self.below(path)))

    def module(self, path: str) -> bool:
        """Whether a module of the project may be loaded from it."""
        return path.endswith(MODULES) and self.holds(path)


def _translate(glob: str) -> str:
    glob = glob.removeprefix("./").rstrip("/")
    anywhere = "" if "/" in glob else "(?:.*/)?"
    out, end = "", 0
    for match in _WORDS.finditer(glob):
        out += re.escape(glob[end : match.start()])
        below, rest, deep, some, one, negated, letters = match.groups()
        if letters is not None:
            out += _letters(match[0], letters, negated=bool(negated))
        elif below:
            out += "(?:.*/)?"
        elif rest:
            out += "/.*"
        else:
            out += ".*" if deep else "[^/]*" if some else "[^/]" if one else ""
        end = match.end()
    return f"{anywhere}{out}{re.escape(glob[end:])}(?:/.*)?"


def _letters(whole: str, letters: str, *, negated: bool) -> str:
    pattern = f"[{'^/' if negated else ''}{re.escape(letters).replace(re.escape('-'), '-')}]"
    try:
        re.compile(pattern)
    except re.error:  # [z-a]
        return re.escape(whole)
    return pattern


def fixed_part(glob: str) -> str:
    """Return the directory that all matches of an absolute glob are in or below."""
    match = re.search(r"[*?[]", glob)
    return (glob[: match.start()] if match else glob).rpartition("/")[0] or "/"

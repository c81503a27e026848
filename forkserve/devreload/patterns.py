"""Patterns: which files belong to a project, and which of them are relevant to a development reload. Pure.

A glob without a slash matches the name of a file, or of any directory above the file: `node_modules`, `*.pyc`. A glob with a
slash matches a path below the project's directory, or an absolute path: `static/**/*.css`. `*` and `?` do not match a slash;
`**` does. A glob that matches a directory also matches everything below it. Exclusion has priority, except over
`Rules.extra`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

INCLUDE: Final = ("*.html", "*.jinja*", ".env", ".flaskenv")
EXCLUDE: Final = (
    *(".git", ".hg", ".svn", ".jj"),
    *("__pycache__", "*.py[cod]", ".cache", ".*_cache", ".hypothesis", ".tox", ".nox", ".eggs", "*.egg-info"),
    *(".venv", "venv", "site-packages", "dist-packages", "node_modules"),
    *(".idea", ".vscode", "*~", ".*.sw?", ".#*", "#*#", "*___jb_*___"),  # files that editors put beside the edited ones
)
MODULES: Final = (".py", ".so")  # suffixes of files from which modules are loaded
_WILDCARDS: Final = re.compile(r"(\*\*/)|(/\*\*$)|(\*\*)|(\*)|(\?)|\[(!?)([^]/]+)\]")


class _Globs:
    """Several globs, compiled into one pattern for relative paths and one for absolute paths."""

    def __init__(self, globs: Iterable[str]) -> None:
        both = list(globs)
        self._absolute = _compile(glob for glob in both if glob.startswith("/"))
        self._relative = _compile(glob for glob in both if not glob.startswith("/"))

    def match(self, path: str, relative: str | None) -> bool:
        """Whether a glob matches the path, or a directory above it."""
        return bool(self._absolute.fullmatch(path) or (relative and self._relative.fullmatch(relative)))


def _compile(globs: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(_translate, globs)) or "(?!)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Rules:
    """Which files of a project are relevant.

    Args:
        folders: The project's directories as absolute paths: the given paths and the real paths.
        include: Globs of files that are relevant although no module is loaded from them.
        exclude: Globs of files and directories that are never relevant.
        extra: Absolute globs of relevant files, inside or outside of the project.
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
        """Return an absolute path relative to the project's directory; None if it is outside."""
        for folder in self.folders:
            if path.startswith(folder.rstrip("/") + "/"):
                return path[len(folder.rstrip("/")) + 1 :]
        return None

    def excluded(self, path: str) -> bool:
        """Whether a file or directory is excluded."""
        return self._excluded.match(path, self.below(path))

    def holds(self, path: str) -> bool:
        """Whether a file or directory belongs to the project."""
        return self.below(path) is not None and not self.excluded(path)

    def included(self, path: str) -> bool:
        """Whether a file is relevant although no module is loaded from it."""
        return self._extra.match(path, None) or (self.holds(path) and self._included.match(path, self.below(path)))

    def module(self, path: str) -> bool:
        """Whether a module of the project may be loaded from the file."""
        return path.endswith(MODULES) and self.holds(path)


def _translate(glob: str) -> str:
    glob = glob.removeprefix("./").rstrip("/")
    anywhere = "" if "/" in glob else "(?:.*/)?"
    out, end = "", 0
    for match in _WILDCARDS.finditer(glob):
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
    except re.error:  # such as [z-a]
        return re.escape(whole)
    return pattern


def fixed_part(glob: str) -> str:
    """Return the directory that contains all matches of an absolute glob, directly or in subdirectories."""
    match = re.search(r"[*?[]", glob)
    return (glob[: match.start()] if match else glob).rpartition("/")[0] or "/"

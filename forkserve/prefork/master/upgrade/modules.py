"""Modules: imports them as the pre-flight has loaded them, whatever their files contain by now. In the program that takes over.

This module runs before any other module of forkserve can be imported, so it imports none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from types import CodeType
from typing import Any

Modules = Mapping[str, tuple[str, bool, CodeType]]  # by name: file, whether it is a package, code


class _Loader(SourceFileLoader):
    """Loads one module from its code, once. Then it is a loader like any other, for the path of the module's file."""

    def __init__(self, name: str, path: str, code: CodeType) -> None:
        super().__init__(name, path)
        self._code = code

    def get_code(self, fullname: str) -> CodeType | None:
        code = self.__dict__.pop("_code")
        self.__class__ = SourceFileLoader  # type: ignore[assignment]
        return code  # type: ignore[no-any-return]


class Finder:
    """Finds the modules that a pre-flight has loaded, whatever their files contain by now."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        """Find a module by its name."""
        if name not in self._modules:
            return None
        path, package, code = self._modules[name]
        where = [os.path.dirname(path)] if package else None
        return spec_from_file_location(name, path, loader=_Loader(name, path, code), submodule_search_locations=where)


def begin(checked: dict[str, Any], modules: Modules) -> None:
    """Start the checked program from its first import; the process ends in it. Called where this module is not imported yet."""
    sys.argv[:], sys.orig_argv[:], sys.path[:] = checked["argv"], checked["words"], checked["path"]
    sys.meta_path.insert(0, Finder(modules))
    del modules
    main = vars(sys.modules["__main__"])
    for name in [name for name in main if not name.startswith("__")]:
        del main[name]  # they hold megabytes
    sys.exit(__import__(checked["start"], fromlist=["main"]).main(checked))


def forget() -> None:
    """Import from the disk from now on: the loop is about to run."""
    sys.meta_path[:] = [one for one in sys.meta_path if (type(one).__module__, type(one).__name__) != (__name__, "Finder")]

"""Modules: imported as a pre-flight has loaded them, whatever their files are by now. In the program that takes over.

It is run before any other module of ours can be imported, and so imports none.
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
    """Loads one module from its code, and is then as any other: the file is where it was."""

    def __init__(self, name: str, path: str, code: CodeType) -> None:
        super().__init__(name, path)
        self._code = code

    def get_code(self, fullname: str) -> CodeType | None:
        code = self.__dict__.pop("_code")
        self.__class__ = SourceFileLoader  # type: ignore[assignment]
        return code  # type: ignore[no-any-return]


class Finder:
    """Finds the modules that a pre-flight had loaded, whatever their files are by now."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        """Find one by its name."""
        if name not in self._modules:
            return None
        path, package, code = self._modules[name]
        where = [os.path.dirname(path)] if package else None
        return spec_from_file_location(name, path, loader=_Loader(name, path, code), submodule_search_locations=where)


def begin(judged: dict[str, Any], modules: Modules) -> None:
    """Be the program that was judged, from its first import on; it ends the process. Before this module is imported."""
    sys.argv[:], sys.orig_argv[:], sys.path[:] = judged["argv"], judged["words"], judged["path"]
    sys.meta_path.insert(0, Finder(modules))
    del modules
    main = vars(sys.modules["__main__"])
    for name in [name for name in main if not name.startswith("__")]:
        del main[name]  # megabytes
    sys.exit(__import__(judged["start"], fromlist=["main"]).main(judged))


def forget() -> None:
    """Import what is on disk from now on: the loop is about to run."""
    sys.meta_path[:] = [one for one in sys.meta_path if (type(one).__module__, type(one).__name__) != (__name__, "Finder")]

"""Packages whose names are imported when they are first used: `npmerge --help` and recipes do without JAX."""

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


class LazyPackage(ModuleType):
    """A package with a table of names; the module of a name is imported when the name is first asked for.

    Submodules are found as if they had been imported. A name of the table that is also a submodule's (`npmerge.fit`) is what
    the table says, in whatever order things are imported.
    """

    _homes: Mapping[str, str]
    __all__: list[str]

    def __getattr__(self, name: str) -> Any:
        if home := self._homes.get(name):
            value = getattr(importlib.import_module(home), name)
            super().__setattr__(name, value)
            return value
        module = f"{self.__name__}.{name}"
        if not name.startswith("__") and importlib.util.find_spec(module):
            return importlib.import_module(module)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}{self._instead_of(name)}")

    def _instead_of(self, name: str) -> str:
        """Where the name is, or which one is near."""
        if name.startswith("_"):
            return ""  # which Python and its libraries ask for, not people
        from alignment.checks import spelled  # here: it takes NumPy

        if others := [x for x in self._packages() if name in x._homes]:
            return f": it is {others[0].__name__}.{name}"
        same = spelled(name, self._homes)
        near = [same] if same in self._homes else difflib.get_close_matches(name, self._homes, n=1)
        return f": the nearest is {near[0]!r}" if near else ""

    def _packages(self) -> list["LazyPackage"]:
        """Those that were imported, and those that stand in `__all__`."""
        for name in self.__all__:
            spec = None if name in self._homes else importlib.util.find_spec(f"{self.__name__}.{name}")
            if spec is not None and spec.submodule_search_locations:
                importlib.import_module(spec.name)
        return [x for x in list(sys.modules.values()) if type(x) is LazyPackage]

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in self._homes):  # or importing a submodule would hide the name
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        held = {name for name, x in vars(self).items() if name.startswith("_") or isinstance(x, ModuleType)}
        return sorted({*held, *self._homes, *self.__all__})


def make_lazy(package: str, names: Mapping[str, str]) -> None:
    """Let a package that is being imported find its names when they are used.

    Args:
        package: its `__name__`.
        names: for each module that defines names, those names with spaces between them.
    """
    module = sys.modules[package]
    module.__dict__["_homes"] = {name: home for home, several in names.items() for name in several.split()}
    module.__class__ = LazyPackage

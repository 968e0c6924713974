"""One fault tried: a process that imports the file with the fault in it and runs tests until one fails.

Files on disk are left alone, so that several faults can be tried side by side. Processes are forked from one that has imported
what the tests need besides the two packages, which takes most of the time of a test.
"""

import ast
import importlib.machinery
import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType
from typing import Literal

from experiments.mutants.operators import Mutant, applied

Outcome = Literal["killed", "timed out", "survived"]


class Finder(importlib.machinery.SourceFileLoader):
    """Imports one module from another syntax tree than that on disk."""

    def __init__(self, name: str, path: str, tree: ast.Module):
        super().__init__(name, path)
        self.tree = tree

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        """The module with the fault; None for all others."""
        package = Path(self.path).name == "__init__.py"
        return importlib.util.spec_from_loader(name, self, is_package=package) if name == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        """Compiled anew: what is cached has no fault."""
        return compile(self.tree, self.path, "exec")


def warm_up() -> None:
    """Import what tests need besides the two packages, with the settings of the tests."""
    import tests.conftest

    assert tests.conftest
    for name in (
        "flax.nnx",
        "optax",
        "scipy.optimize",
        "scipy.linalg",
        "orbax.checkpoint",
        "sklearn.datasets",
        "typer.testing",
    ):
        importlib.import_module(name)
    loaded = [name for name in sys.modules if name.split(".")[0] in ("alignment", "npmerge")]
    assert not loaded, f"{loaded[0]} is imported before the fault is in it"


def tried(mutant: Mutant | None, tests: Sequence[str], root: Path, seconds: float) -> Outcome:
    """What becomes of the tests with the fault, or without any for None."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(mutant, tests, root))
    process.start()
    process.join(seconds)
    process.join(1)  # the thread that starts another process may just be reading how this one ended
    if process.is_alive():
        process.kill()
        process.join()
        return "timed out"
    return "survived" if process.exitcode == 0 else "killed"


def _run(mutant: Mutant | None, tests: Sequence[str], root: Path) -> None:
    import pytest

    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    if mutant is not None:
        path = root / mutant.file
        parts = Path(mutant.file).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sys.meta_path.insert(0, Finder(name, str(path), applied(mutant, path.read_text(encoding="utf-8"))))
    options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "-p", "no:randomly", "--no-header", "--rootdir", str(root)]
    os._exit(int(pytest.main([*options, *tests])))

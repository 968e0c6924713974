"""The examples in docstrings: every public class and function has one, and what it shows is what comes out."""

import doctest
import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import alignment
import npmerge as nm

NAMES = {"alignment": alignment, "jax": jax, "jnp": jnp, "nm": nm, "np": np, "optax": optax}
"""What examples may use without an import of their own."""


def public(package: str) -> dict[str, object]:
    """The classes and functions of a package's `__all__` whose home it is, by name."""
    module = importlib.import_module(package)
    found = {name: getattr(module, name) for name in module.__all__}
    wanted = {name: x for name, x in found.items() if inspect.isclass(x) or inspect.isroutine(x) or hasattr(x, "__wrapped__")}
    return {name: x for name, x in wanted.items() if x.__module__.split(".")[0] == package.split(".")[0]}


def check(name: str, thing: object) -> None:
    """Run the example of one docstring, with the names that people have after the README's imports."""
    found = doctest.DocTestParser().get_doctest(inspect.getdoc(thing) or "", dict(NAMES), name, None, None)
    assert found.examples, f"{name} has no example: write one under `Example:` in its docstring"
    if any("import torch" in example.source for example in found.examples):
        pytest.importorskip("torchax", reason="the example needs PyTorch")
    said: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed = doctest.DocTestRunner(optionflags=flags).run(found, out=said.append).failed
    assert not failed, "".join(said)

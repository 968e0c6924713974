from dataclasses import is_dataclass

import pytest

from npmerge.cost import collected, merged
from npmerge.low_rank import with_low_rank
from tests import examples

PACKAGES = ("npmerge", "npmerge.checkpoint", "npmerge.lora", "npmerge.models", "npmerge.objectives")
BY_MODULE = (collected, merged, with_low_rank)
"""What the README calls by its module."""
BY_PACKAGE = {
    id(thing): (f"{package}.{name}", thing)
    for package in reversed(PACKAGES)
    for name, thing in examples.public(package).items()
}
PUBLIC = dict(BY_PACKAGE.values())
PUBLIC |= {f"{function.__module__}.{function.__name__}": function for function in BY_MODULE}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_of_every_public_name_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples.check(name, PUBLIC[name])


@pytest.mark.parametrize("name", [n for n, thing in PUBLIC.items() if isinstance(thing, type) and is_dataclass(thing)])
def test_every_public_dataclass_is_frozen(name):
    """A merge, a statistic or a result is a value: it may be shared and hashed, and jitted functions may keep it."""
    assert PUBLIC[name].__dataclass_params__.frozen

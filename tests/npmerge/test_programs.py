"""Merges whose hyper-parameters are in theta share a compiled `apply`: a search over them compiles once."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npmerge as nm
from npmerge import base


@pytest.fixture
def stack():
    models = [{"w": jnp.arange(6.0).reshape(2, 3) * k, "b": jnp.full(3, float(k))} for k in (1, 2)]
    return nm.stack_models(models, base={"w": jnp.ones((2, 3)), "b": jnp.zeros(3)})


def compiled(*merges, stack):
    """How many programs they need that were not there."""
    before = base._applied._cache_size()
    for merge in merges:
        merge(stack)
    return base._applied._cache_size() - before


def test_linear_merges_share_a_program(stack):
    nm.TaskArithmetic(0.1)(stack)
    assert compiled(nm.TaskArithmetic(0.2), nm.TaskArithmetic(0.3), stack=stack) == 0
    assert nm.Ties(scale=0.4).program == nm.TaskArithmetic(0.1).program != nm.Average().program


def test_what_is_shared_is_right(stack):
    for scale in (0.1, 0.7, 1.3):
        expected = stack.base["w"] + scale * (stack.params["w"] - stack.base["w"][None]).sum(0)
        np.testing.assert_allclose(nm.TaskArithmetic(scale)(stack)["w"], expected, rtol=1e-6)
    np.testing.assert_allclose(nm.Average()(stack)["w"], stack.params["w"].mean(0), rtol=1e-6)


def test_a_merge_that_reads_its_fields_has_a_program_of_its_own(stack):
    @dataclass(frozen=True)
    class Shifted(nm.LinearMerge):
        by: float

        def init(self, stack, *, stats=None, key=None):
            return jax.tree.map(lambda x: jnp.full((len(x),) + (1,) * (x.ndim - 1), 0.5), stack.params)

        def apply(self, theta, stack):
            return jax.tree.map(lambda x: x.mean(0) + jnp.float32(self.by), stack.params)

    for by in (1.0, 2.0):
        np.testing.assert_allclose(Shifted(by)(stack)["b"], 1.5 + by)
    assert nm.IsoC(0.5).program != nm.IsoC(0.7).program


def test_quadratic_merges_share_a_program():
    assert nm.RegMean(scale=0.1).program == nm.RegMean(scale=0.9).program

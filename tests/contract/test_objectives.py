"""What every objective keeps, over OBJECTIVES: it is a value, a scalar with gradients, and padding does not change it."""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import npmerge as nm
from npmerge.masks import masked_mean
from tests.npmerge.toys import apply, array, batch, variables

MODELS = [variables(k) for k in range(3)]
STACK = nm.stack_models(MODELS, variables(9))
PAIR = batch(1, 8)
GRAPH = nm.trace(apply, MODELS[0], PAIR[0])


def read(v: Any, tokens: jax.Array) -> jax.Array:
    """A language model: the mean of the embeddings so far, and a layer on top."""
    seen = jnp.cumsum(v["table"][tokens], axis=1)
    count = jnp.broadcast_to(jnp.arange(1.0, tokens.shape[1] + 1)[None, :, None], seen.shape)
    return jnp.tensordot(jnp.tanh(seen / count), v["head"], 1)


READERS = [{"table": array(10 + k, 5, 4), "head": array(20 + k, 4, 5)} for k in range(3)]
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 5, (8, 6)).astype(np.int32), np.int32)


def squares(apply, params, stack, batch):
    """A user's objective that heeds masks."""
    return masked_mean(jnp.square(apply(params, batch[0])), batch)


class Case(NamedTuple):
    """An objective, the network and models that it is tried on, and a batch."""

    objective: nm.Objective
    batch: Any = PAIR
    apply: Any = apply
    models: Any = MODELS

    @property
    def stack(self) -> nm.Stack:
        return nm.stack_models(self.models, self.models[0])

    def value(self, params: Any, batch: Any) -> jax.Array:
        return self.objective(self.apply, params, self.stack, batch)


CASES = {
    nm.CrossEntropy: Case(nm.CrossEntropy()),
    nm.NextToken: Case(nm.NextToken(), (TOKENS, None), read, READERS),
    nm.Distillation: Case(nm.Distillation(2.0)),
    nm.Entropy: Case(nm.Entropy()),
    nm.FeatureMatching: Case(nm.FeatureMatching(GRAPH, teacher=1)),
    nm.Proximity: Case(nm.Proximity(to="base")),
    nm.Sum: Case(nm.Sum((nm.CrossEntropy(), nm.Proximity(), nm.FeatureMatching(GRAPH, sequential=False)), (1.0, 0.5, 2.0))),
    nm.Joint: Case(nm.Joint(nm.Distillation(teacher="own"), (1.0, 2.0, 0.5)), tuple(batch(k, 8) for k in range(3))),
    nm.PerExample: Case(nm.PerExample(optax.softmax_cross_entropy_with_integer_labels)),
    nm.UserObjective: Case(nm.UserObjective(squares, masks=True)),
}
each = pytest.mark.parametrize("case", CASES.values(), ids=[kind.__name__ for kind in CASES])
START = {id(MODELS): variables(5), id(READERS): {"table": array(7, 5, 4), "head": array(8, 4, 5)}}


def start(case: Case) -> Any:
    return START[id(case.models)]


@functools.cache
def compiled(kind: type) -> Any:
    return jax.jit(jax.value_and_grad(CASES[kind].value))


def learned(case: Case, batch: Any) -> tuple[jax.Array, Any]:
    """The value and the gradient, compiled once for all tests."""
    return compiled(type(case.objective))(start(case), batch)


def mapped(case: Case, function: Any) -> Any:
    return case.objective.map_batches(function, case.batch)


def test_every_objective_has_a_case():
    assert set(CASES) == set(nm.OBJECTIVES)
    assert all(type(case.objective) is kind for kind, case in CASES.items())


@each
def test_it_is_a_value(case):
    again = dataclasses.replace(case.objective)
    assert (again, hash(again)) == (case.objective, hash(case.objective))
    with pytest.raises(dataclasses.FrozenInstanceError):
        case.objective.anything = 1
    assert type(case.objective).__doc__


@each
def test_it_is_a_scalar_with_gradients_under_jit_too(case):
    value, gradient = learned(case, case.batch)
    chex.assert_shape(value, ())
    assert value.dtype == jnp.float32
    chex.assert_tree_all_finite((value, gradient))
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient)) > 1e-6
    assert float(case.value(start(case), case.batch)) == pytest.approx(float(value), rel=1e-5)  # without jit


@each
def test_the_order_of_examples_is_nothing(case):
    turned = mapped(case, lambda b: jax.tree.map(lambda x: x[::-1], tuple(b)))
    assert float(learned(case, turned)[0]) == pytest.approx(float(learned(case, case.batch)[0]), rel=1e-5)


def padded(pair: tuple) -> tuple:
    """The last three examples replaced by what does not count, with labels and tokens that are none."""
    inputs, targets = pair
    return inputs.at[5:].set(77), None if targets is None else targets.at[5:].set(-5), jnp.arange(8) < 5


@each
def test_padding_changes_neither_value_nor_gradient(case):
    assert case.objective.masks
    alone = mapped(case, lambda b: jax.tree.map(lambda x: x[:5], tuple(b)))
    expected, got = (learned(case, b) for b in (alone, mapped(case, padded)))
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-6)
    check = case.objective.checker(case.apply, start(case), case.stack, mapped(case, padded))
    check(case.batch)
    check(mapped(case, padded))


@each
def test_a_batch_of_padding_alone_is_worth_nothing(case):
    def nothing(pair: tuple) -> tuple:
        return pair[0], pair[1], jnp.zeros(len(pair[0]), bool)

    value, gradient = learned(case, mapped(case, nothing))
    chex.assert_tree_all_finite((value, gradient))
    if case.objective.reads_batches and not isinstance(case.objective, nm.Sum):
        assert float(value) == 0


@each
def test_bad_batches_are_refused(case):
    check = case.objective.checker(case.apply, start(case), case.stack, case.batch)
    check(case.batch)
    if not case.objective.reads_batches:
        return
    bare = [mapped(case, function) for function in (lambda b: (b[0],), lambda b: (*b, None), lambda b: (*b, b[0][:, 0] > 0, 1))]
    for wrong in bare:
        with pytest.raises(ValueError, match=r"batch must be|a mask must be"):
            check(wrong)
        with pytest.raises(ValueError, match=r"batch must be|a mask must be"):
            case.objective.checker(case.apply, start(case), case.stack, wrong)
    for mask in (jnp.ones(8), jnp.ones(7, bool), jnp.ones((8, 2, 2), bool)):
        with pytest.raises(ValueError, match="a mask must be of bool"):
            check(mapped(case, lambda b, mask=mask: (*b, mask)))


@each
def test_it_is_learned_by_fit_with_held_out_data(case):
    merge = nm.Learned(nm.Average(), nm.PerTensor(), nm.Simplex())
    loss = nm.weight_space(merge, case.apply, case.objective)
    theta = merge.init(case.stack)
    result = nm.fit(theta, loss, case.stack, [case.batch], optax.sgd(0.01), steps=2, held_out=[case.batch], every=1)
    assert result.status == "finished"
    assert result.history.held_out_loss[-1] <= result.history.held_out_loss[0] + 1e-6
    assert result.history.loss[0] == pytest.approx(result.history.held_out_loss[0], rel=1e-4)

"""The warning before coefficients are learned on one task that one of the models solves already."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import npmerge as nm
from npmerge.objectives.base import tasks_of
from tests.npmerge.toys import apply, batch, variables

MODELS = [variables(k) for k in range(3)]
STACK = nm.stack_models(MODELS)
X = batch(0, 32)[0]
MERGE = nm.Learned(nm.Average(), nm.PerTensor(), nm.Simplex())
LOSS = nm.weight_space(MERGE, apply, nm.CrossEntropy())
THETA = MERGE.init(STACK)


def task(m: int) -> tuple:
    """What model m makes of the inputs, as labels."""
    return X, jnp.argmax(apply(MODELS[m], X), -1).astype(jnp.int32)


def test_one_task_that_a_model_solves():
    with pytest.warns(
        UserWarning, match="model 1 alone has an objective of .* learned coefficients may collapse onto that"
    ) as told:
        assert nm.warn_of_collapse(LOSS, THETA, STACK, [task(1), task(1)]) == 1
    assert len(told) == 1
    assert told[0].filename == __file__


def test_nothing_is_said_of_joint_tasks_or_unsolved_ones():
    joint = nm.weight_space(MERGE, apply, nm.Joint(nm.CrossEntropy()))
    assert nm.warn_of_collapse(joint, THETA, STACK, [tuple(task(m) for m in range(3))]) is None
    random = (X, jnp.zeros(32, jnp.int32).at[::3].set(1).at[1::3].set(2))
    assert nm.warn_of_collapse(LOSS, THETA, STACK, [random]) is None
    assert nm.warn_of_collapse(LOSS, THETA, nm.stack_models(MODELS[:1]), [task(0)]) is None


def test_a_joint_objective_of_one_task_is_one_task():
    joint = nm.weight_space(MERGE, apply, nm.Joint(nm.CrossEntropy()))
    with pytest.warns(UserWarning, match="model 2 alone"):
        assert nm.warn_of_collapse(joint, THETA, STACK, [(task(2),)]) == 2
    assert tasks_of(nm.Sum((nm.Proximity(), nm.Joint(nm.CrossEntropy()))), (task(0), task(1))) == 2
    assert tasks_of(nm.NextToken(), jnp.zeros((2, 3), jnp.int32)) == 1


def test_the_share_decides():
    values = [float(nm.CrossEntropy()(apply, p, STACK, task(0))) for p in (MERGE.apply(THETA, STACK), *MODELS)]
    start, best = values[0], min(values[1:])
    assert best < start
    with pytest.warns(UserWarning, match="collapse"):
        assert nm.warn_of_collapse(LOSS, THETA, STACK, [task(0)], share=min(1.0, 1.01 * best / start)) == values.index(best) - 1
    assert nm.warn_of_collapse(LOSS, THETA, STACK, [task(0)], share=0.99 * best / start) is None
    with pytest.warns(UserWarning, match="collapse"):
        assert nm.warn_of_collapse(LOSS, THETA, STACK, [batch(5)], share=1.0) == 0  # a little better than the start
    assert nm.warn_of_collapse(LOSS, THETA, STACK, [batch(5)]) is None


def test_batches_of_other_sizes_count_by_their_examples():
    """The values in the warning are those of all examples at once, and so is the model that it names."""
    x, y = task(1)
    for cut in ([x.shape[0]], [29, 3], [1, 31]):
        ends = np.cumsum([0, *cut])
        with pytest.warns(UserWarning, match="model 1 alone has an objective of 0.46 .* the start of the merge one of 1.39"):
            nm.warn_of_collapse(LOSS, THETA, STACK, [(x[a:b], y[a:b]) for a, b in itertools.pairwise(ends)])


def test_bad_input():
    for batches, message in (
        (nm.shuffled(*task(0), 8, seed=0), "batches that end: got shuffled"),
        (task(0), "one batch alone is"),
    ):
        with pytest.raises(ValueError, match=message):
            nm.warn_of_collapse(LOSS, THETA, STACK, batches)
    with pytest.raises(ValueError, match=r"warn_of_collapse takes \(loss, theta, stack\), got \(FineTuningLoss, Stack\)"):
        nm.warn_of_collapse(nm.fine_tuning(apply, nm.CrossEntropy()), THETA, STACK, [task(0)])
    with pytest.raises(ValueError, match="judges by data: got no batches"):
        nm.warn_of_collapse(LOSS, THETA, STACK, [])
    with pytest.raises(ValueError, match="share must be a number above 0 and at most 1, got 2"):
        nm.warn_of_collapse(LOSS, THETA, STACK, [task(0)], share=2)

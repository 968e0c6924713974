"""Teachers, against float64 numpy: one model, the mean of all, each on its own task."""

import jax.numpy as jnp
import numpy as np
import pytest

import npmerge as nm
from tests.npmerge.toys import apply, batch, log_softmax64, logits64, variables

MODELS = [variables(k) for k in range(3)]
STACK = nm.stack_models(MODELS)
STUDENT = variables(7)
TASKS = tuple(batch(k, 4 + k) for k in range(3))


def from_model(m: int, x, t: float) -> float:
    """T^2 KL in float64."""
    teacher, student = (log_softmax64(logits64(v, x) / t) for v in (MODELS[m], STUDENT))
    return float(t**2 * (np.exp(teacher) * (teacher - student)).sum(-1).mean())


def test_one_model():
    got = nm.Distillation(1.5, teacher=2)(apply, STUDENT, STACK, TASKS[0])
    assert float(got) == pytest.approx(from_model(2, TASKS[0][0], 1.5), rel=1e-4)
    assert float(nm.Distillation(teacher=1)(apply, MODELS[1], STACK, TASKS[0])) == pytest.approx(0, abs=1e-6)


def test_each_model_on_its_own_task():
    own = nm.Joint(nm.Distillation(2.0, teacher="own"))
    want = np.mean([from_model(m, TASKS[m][0], 2.0) for m in range(3)])
    assert float(own(apply, STUDENT, STACK, TASKS)) == pytest.approx(want, rel=1e-4)
    by_hand = nm.Joint(tuple(nm.Distillation(2.0, teacher=m) for m in range(3)))
    assert float(by_hand(apply, STUDENT, STACK, TASKS)) == float(own(apply, STUDENT, STACK, TASKS))
    summed = nm.Joint(nm.Sum((nm.Distillation(2.0, teacher="own"), nm.Entropy()), (1.0, 0.0)))
    assert float(summed(apply, STUDENT, STACK, TASKS)) == pytest.approx(want, rel=1e-4)


def test_the_mask_of_positions_is_that_of_predictions():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32), np.float32)
    mask = jnp.array([[True, True, False], [True, False, False]])

    def network(v, x):
        return logits * v["scale"]

    stack = nm.stack_models([{"scale": jnp.float32(k)} for k in (1.0, 2.0)])
    got = nm.Distillation(teacher=1)(network, {"scale": jnp.float32(0.5)}, stack, (jnp.zeros((2, 3)), None, mask))
    teacher, student = (log_softmax64(np.asarray(logits, np.float64) * s) for s in (2.0, 0.5))
    want = (np.exp(teacher) * (teacher - student)).sum(-1)[np.asarray(mask)].mean()
    assert float(got) == pytest.approx(want, rel=1e-5)
    values = nm.Entropy()(network, {"scale": jnp.float32(0.5)}, None, (jnp.zeros((2, 3)), None, mask))
    assert float(values) == pytest.approx(-(np.exp(student) * student).sum(-1)[np.asarray(mask)].mean(), rel=1e-5)


def test_bad_input():
    for wrong in ("theirs", -1, True, 1.5, None):
        with pytest.raises(ValueError, match="the teacher of Distillation must be 'mean', 'own' or the number of a model, got"):
            nm.Distillation(teacher=wrong)
    with pytest.raises(ValueError, match="temperature must be a finite number above 0, got 0"):
        nm.Distillation(0)
    for ask in (
        lambda o, b: o(apply, STUDENT, STACK, b),
        lambda o, b: o.checker(apply, STUDENT, STACK, b),
    ):
        with pytest.raises(ValueError, match="Distillation is to learn from model 3: the stack has the models 0 to 2"):
            ask(nm.Distillation(teacher=3), TASKS[0])
        with pytest.raises(ValueError, match=r"teacher='own' is the model of each task: give batches of every task to Joint"):
            ask(nm.Distillation(teacher="own"), TASKS[0])
        with pytest.raises(ValueError, match="teacher='own' asks for a task for each model: got batches of 2 for 3 models"):
            ask(nm.Joint(nm.Distillation(teacher="own")), TASKS[:2])
    with pytest.raises(ValueError, match="got no stack"):
        nm.Distillation().checker(apply, STUDENT, None, TASKS[0])
    with pytest.raises(ValueError, match="apply must return logits"):
        nm.Distillation().checker(lambda v, x: (apply(v, x), v), STUDENT, STACK, TASKS[0])(TASKS[0])

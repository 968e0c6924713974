"""Batches of several tasks, and sums of objectives and losses, against sums by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import npmerge as nm
from npmerge.objectives import LossSum
from tests.npmerge.toys import apply, batch, variables

MODELS = [variables(k) for k in range(3)]
STACK = nm.stack_models(MODELS, variables(9))
P = variables(7)
TASKS = tuple(batch(k, 4 + 2 * k) for k in range(3))
CE, ENTROPY = nm.CrossEntropy(), nm.Entropy()
MERGE = nm.Learned(nm.Average(), nm.PerTensor(), nm.Simplex())
LOSS = nm.weight_space(MERGE, apply, CE)


def of(objective, data, function=apply) -> float:
    return float(objective(function, P, STACK, data))


EACH = [of(CE, task) for task in TASKS]


def test_the_tasks_are_averaged_or_weighted():
    assert of(nm.Joint(CE), TASKS) == pytest.approx(np.mean(EACH), rel=1e-6)
    weighted = 0.5 * EACH[0] + 2 * EACH[1] - EACH[2]
    assert of(nm.Joint(CE, (0.5, 2, -1.0)), TASKS) == pytest.approx(weighted, rel=1e-5)
    assert of(nm.Joint([CE, ENTROPY]), TASKS[:2]) == pytest.approx((EACH[0] + of(ENTROPY, TASKS[1])) / 2, rel=1e-6)


def test_tasks_may_have_heads_of_their_own():
    def turned(v, x):
        return -apply(v, x)

    joint = nm.Joint(CE, functions=(apply, turned))
    want = (EACH[0] + float(CE(turned, P, STACK, TASKS[1]))) / 2
    assert of(joint, TASKS[:2]) == pytest.approx(want, rel=1e-6)
    joint.checker(apply, P, STACK, TASKS[:2])(TASKS[:2])
    assert len({hash(joint), hash(nm.Joint(CE, functions=[apply, turned]))}) == 1


def test_joint_batches_are_learned_from():
    loss = nm.weight_space(MERGE, apply, nm.Joint(CE))
    parts = nm.by_task([nm.shuffled(*task, 4, seed=k) for k, task in enumerate(TASKS)])
    result = nm.fit(MERGE.init(STACK), loss, STACK, parts, optax.adam(0.1), steps=20, held_out=[TASKS], every=10)
    assert result.history.held_out_loss[-1] < result.history.held_out_loss[0]
    bad = (*TASKS[:2], (TASKS[2][0], TASKS[2][1] + 3))
    for data, held_out in (([bad], []), ([TASKS], [bad])):
        with pytest.raises(ValueError, match="labels out of range"):
            nm.fit(MERGE.init(STACK), loss, STACK, data, optax.sgd(0.1), steps=1, held_out=held_out)
    nan = (*TASKS[:2], (TASKS[2][0].at[0, 0].set(jnp.nan), TASKS[2][1]))
    with pytest.raises(ValueError, match="non-finite values"):
        nm.fit(MERGE.init(STACK), loss, STACK, [TASKS], optax.sgd(0.1), steps=1, held_out=[nan])


def test_what_is_no_joint_batch():
    check = nm.Joint(CE).checker(apply, P, STACK, TASKS)
    check(TASKS)
    with pytest.raises(ValueError, match="a joint batch has 2 tasks, the first one had 3"):
        check(TASKS[:2])
    three = nm.Joint((CE, CE, ENTROPY))
    for wrong, got in ((TASKS[:2], "2"), (TASKS[0][0], "ArrayImpl"), ((), "0")):
        for use in (lambda b: of(three, b), lambda b: three.checker(apply, P, STACK, b), lambda b: three.map_batches(id, b)):
            with pytest.raises(ValueError, match=f"a tuple with the batches of 3 tasks: got {got}"):
                use(wrong)
    with pytest.raises(ValueError, match=r"each batch must be a tuple \(inputs, targets\)"):
        check((*TASKS[:2], TASKS[2][0]))
    wrong = (*TASKS[:2], (TASKS[2][0], TASKS[2][1][:, None]))
    for use in (check, lambda b: nm.Joint(CE).check(b, apply(P, TASKS[0][0]))):
        use(TASKS)
        with pytest.raises(ValueError, match=r"labels must be one per prediction"):
            use(wrong)


def test_bad_joints():
    for wrong, got in (
        (CE.__call__, "method"),
        (nm.CrossEntropy, "the class CrossEntropy"),
        ((CE, apply), "CrossEntropy, function"),
    ):
        with pytest.raises(ValueError, match=f"Joint takes objectives such as .*, got {got}"):
            nm.Joint(wrong)
    for wrong in (((CE, CE), (1.0,)), (CE, (1.0, 2.0), (apply,)), ((CE, CE), None, (apply, apply, apply))):
        with pytest.raises(ValueError, match="an objective, a weight and a function for each task: got"):
            nm.Joint(*wrong)
    with pytest.raises(ValueError, match=r"functions of \(variables, inputs\)"):
        nm.Joint(CE, functions=(apply, None))
    for weights, bad in (((1.0, np.nan), "nan"), ("ab", "'a'"), (object(), "<object")):
        with pytest.raises(ValueError, match=f"a weight of Joint must be a finite number, got {bad}"):
            nm.Joint(CE, weights)


# ----------------------------------------------------------------------------------------------------------------- sums


def test_a_sum_checks_what_its_terms_check():
    outputs = apply(P, TASKS[0][0])
    nm.Sum((ENTROPY, CE)).check(TASKS[0], outputs)
    with pytest.raises(ValueError, match=r"labels must be one per prediction"):
        nm.Sum((ENTROPY, CE)).check((TASKS[0][0], TASKS[0][1][:, None]), outputs)


def test_a_sum_is_weighted():
    assert of(nm.Sum((CE, ENTROPY)), TASKS[0]) == pytest.approx(EACH[0] + of(ENTROPY, TASKS[0]), rel=1e-6)
    near = nm.Proximity()
    summed = nm.Sum([CE, near], [2, 0.5])
    assert of(summed, TASKS[0]) == pytest.approx(2 * EACH[0] + 0.5 * of(near, ()), rel=1e-5)
    assert of(nm.Sum((nm.Joint(CE), near)), TASKS) == pytest.approx(np.mean(EACH) + of(near, ()), rel=1e-5)
    assert summed == nm.Sum((CE, near), (2.0, 0.5))


def test_a_sum_asks_what_its_terms_ask():
    check = nm.Sum((nm.Proximity(), CE)).checker(apply, P, STACK, TASKS[0])
    check(TASKS[0])
    with pytest.raises(ValueError, match="labels out of range"):
        check((TASKS[0][0], TASKS[0][1] + 3))
    joint = nm.Sum((nm.Proximity(), nm.Joint(CE)))
    assert joint.map_batches(len, TASKS) == (2, 2, 2)
    joint.checker(apply, P, STACK, TASKS)(TASKS)
    with pytest.raises(ValueError, match="a Sum is of objectives on the same batch, some of these read one for each task"):
        nm.Sum((ENTROPY, nm.Joint(CE))).checker(apply, P, STACK, TASKS)
    only = nm.Sum((nm.Proximity(),))
    assert not only.reads_batches
    assert only.map_batches(len, ()) == ()


def test_results_can_say_that_they_are_transductive():
    assert [o.transductive for o in (CE, nm.Distillation(), nm.NextToken(), nm.Sum((CE,)), nm.Joint(CE))] == [False] * 5
    for objective in (ENTROPY, nm.Sum((CE, ENTROPY)), nm.Joint(ENTROPY), nm.Joint((CE, nm.Sum((ENTROPY,))))):
        assert objective.transductive
        assert nm.weight_space(MERGE, apply, objective).transductive
        assert nm.weighted_sum((LOSS, nm.fine_tuning(apply, objective))).transductive


def test_bad_sums():
    with pytest.raises(ValueError, match=r"Sum takes objectives such as .*, got function"):
        nm.Sum((apply,))
    with pytest.raises(ValueError, match=r"Sum takes objectives such as .*, got CrossEntropy"):
        nm.Sum(CE)
    with pytest.raises(ValueError, match="Sum takes a weight for each of 2 objectives: got 1"):
        nm.Sum((CE, ENTROPY), (1.0,))
    with pytest.raises(ValueError, match=r"weighted_sum takes losses such as .*, got CrossEntropy"):
        nm.weighted_sum((CE,))
    with pytest.raises(ValueError, match=r"weighted_sum takes losses such as .*, got WeightSpaceLoss"):
        nm.weighted_sum(LOSS)
    with pytest.raises(ValueError, match="weighted_sum takes a weight for each of 1 losses: got 2"):
        nm.weighted_sum([LOSS], (1.0, 2.0))


def test_losses_are_summed_with_their_checks_and_keys():
    def drawn(theta, stack, batch, *, key=None):
        return jnp.float32(0) if key is None else jax.random.uniform(key)

    theta, key = MERGE.init(STACK), jax.random.key(3)
    total = nm.weighted_sum([LOSS, drawn], [1.0, 10.0])
    assert (total, hash(total)) == (LossSum((LOSS, drawn), (1.0, 10.0)), hash(LossSum((LOSS, drawn), (1.0, 10.0))))
    plain = float(LOSS(theta, STACK, TASKS[0]))
    assert float(total(theta, STACK, TASKS[0])) == pytest.approx(plain, rel=1e-6)
    assert float(total(theta, STACK, TASKS[0], key=key)) == pytest.approx(plain + 10 * float(jax.random.uniform(key)), rel=1e-5)
    with pytest.raises(ValueError, match="labels out of range"):
        total.checker(theta, STACK, TASKS[0])((TASKS[0][0], TASKS[0][1] + 3))
    assert not total.masks
    assert nm.weighted_sum([LOSS, nm.EqualShares(MERGE)]).masks
    near = nm.weight_space(MERGE, apply, nm.Proximity())
    assert nm.weighted_sum([near, nm.EqualShares(MERGE), LOSS]).map_batches(len, TASKS[0]) == 2
    assert not nm.weighted_sum([near, nm.EqualShares(MERGE)]).reads_batches

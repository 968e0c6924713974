"""The path between two networks, and barriers along it, against float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from npmerge import Path, PerExample, barrier, evaluate, in_order, path_between, reset_statistics, resetting
from tests.npmerge.test_evaluate import LABELS, A, B, X, metrics64, squared
from tests.npmerge.toys import apply, array, batch, logits64, variables


def test_no_barrier_between_identical_networks():
    path = path_between(apply, A, A, [(X, LABELS)], points=5)
    np.testing.assert_array_equal(path.fractions, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(path.loss, metrics64(logits64(A, X))[1], rtol=1e-5)
    assert path.barrier == pytest.approx(0, abs=1e-6)


def test_a_path_by_hand():
    path = path_between(apply, A, B, in_order(X, LABELS, 4), points=4)
    fractions = np.array([0, 1 / 3, 2 / 3, 1])
    mixed = [jax.tree.map(lambda a, b, t=t: (1 - t) * np.asarray(a, np.float64) + t * np.asarray(b), A, B) for t in fractions]
    accuracy, loss = np.array([metrics64(logits64(m, X)) for m in mixed]).T
    np.testing.assert_allclose(path.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(path.accuracy, accuracy, rtol=1e-6)
    assert path.barrier == pytest.approx((loss - (1 - fractions) * loss[0] - fractions * loss[-1]).max(), rel=1e-4)


def test_a_path_of_another_objective():
    targets, objective = np.asarray(X[:, :3]), PerExample(squared)
    found = barrier(apply, A, B, in_order(X, targets, 4), points=3, objective=objective)
    mixed = [jax.tree.map(lambda a, b, t=t: (1 - t) * np.asarray(a, np.float64) + t * np.asarray(b), A, B) for t in (0, 0.5, 1)]
    np.testing.assert_allclose(found.path.loss, [np.square(logits64(m, X) - targets).mean() for m in mixed], rtol=1e-5)
    assert found.loss == found.path.barrier and np.isnan(found.accuracy)
    ends = f"{found.path.loss[0]:.3g} -> {found.path.loss[-1]:.3g}"
    assert repr(found) == f"Barrier(loss={found.loss}, path=Path(3 points, loss {ends}, at most {found.path.loss.max():.3g}))"
    assert repr(found._replace(accuracy=0.5)).startswith(f"Barrier(loss={found.loss}, accuracy=0.5, path=")
    unknown = evaluate(apply, A, [(X, targets)], objective=objective)
    assert repr(unknown) == f"Metrics(loss={unknown.loss}, examples=10)"
    assert repr(unknown._replace(accuracy=0.5, loss=np.nan)) == "Metrics(accuracy=0.5, loss=nan, examples=10)"


def test_the_barrier_is_measured_from_the_line_between_the_ends():
    path = Path(np.array([0, 0.5, 1]), np.array([1.0, 2.5, 3.0]), np.zeros(3))
    assert path.barrier == pytest.approx(0.5)
    assert Path(np.array([0, 0.5, 1]), np.array([1.0, 0.5, 3.0]), np.zeros(3)).barrier == 0
    accuracies = Path(np.array([0, 0.25, 1]), np.zeros(3), np.array([0.9, 0.6, 0.5]))
    assert accuracies.accuracy_barrier == pytest.approx(0.2)
    assert Path(np.array([0, 0.5, 1]), np.zeros(3), np.array([0.5, 0.8, 0.7])).accuracy_barrier == 0


def test_integer_leaves_come_from_the_first_network():
    def counted(v, x):
        return apply(v["net"], x) / v["steps"].astype(jnp.float32)

    first, second = {"net": A, "steps": np.array(2)}, {"net": B, "steps": jnp.array(7)}
    path = path_between(counted, first, second, [(X, LABELS)], points=3)
    halved = evaluate(counted, {"net": B, "steps": jnp.array(2)}, [(X, LABELS)])
    assert path.loss[-1] == pytest.approx(halved.loss, rel=1e-6)
    assert barrier(counted, first, second, [(X, LABELS)], points=3).loss == path.barrier
    with pytest.raises(ValueError, match=r"model 1 differs from model 0 at 'steps': got float32\[1\], expected float32\[\]"):
        path_between(counted, first, second | {"steps": np.array([7])}, [(X, LABELS)])


def test_a_path_takes_a_list_of_batches_and_a_function_of_the_variables():
    model, data = variables(0), [batch(0)]
    for wrong in (iter(data), (pair for pair in data)):
        for call in (lambda w=wrong: barrier(apply, model, model, w), lambda w=wrong: resetting(scale_net_train, w)):
            with pytest.raises(ValueError, match="expected a list of batches, got"):
                call()
    for wrong in (scale_net_train, scale_net):
        with pytest.raises(ValueError, match=r"reset must be a function of the variables alone, such as resetting\("):
            barrier(apply, model, model, data, reset=wrong)
    swapped = r"path_between and barrier take \(apply, start, end, batches\), got "
    with pytest.raises(ValueError, match=swapped + r"\(dict, function, dict, list\)"):
        barrier(model, apply, model, data)
    with pytest.raises(ValueError, match=swapped + r"\(function, list, dict, dict\)"):
        barrier(apply, data, model, model)
    with pytest.raises(ValueError, match=r"points must be an integer of 2 or more, got 3\.0"):
        barrier(apply, model, model, data, points=3.0)


def test_a_path_needs_two_ends():
    with pytest.raises(ValueError, match="points must be an integer of 2 or more, got 1"):
        path_between(apply, A, B, [(X, LABELS)], points=1)


def scale_net(variables, x):
    """Divides by a running standard deviation."""
    return x * jnp.broadcast_to(variables["gain"] / variables["batch_stats"]["std"], x.shape)


def scale_net_train(variables, x):
    std = 0.9 * variables["batch_stats"]["std"] + 0.1 * x.std(0)
    return scale_net(variables, x), variables | {"batch_stats": {"std": std}}


ENDS = [{"gain": array(k, 3), "batch_stats": {"std": jnp.full(3, s)}} for k, s in ((0, 0.5), (1, 4.0))]


def test_statistics_are_reset_at_every_point():
    x, labels = X[:, :3], LABELS
    path = path_between(scale_net, *ENDS, [(x, labels)], points=3, reset=resetting(scale_net_train, [(x, labels)]))
    reset = functools.partial(reset_statistics, scale_net_train, batches=[(x, labels)])
    for at, end in ((0, ENDS[0]), (-1, ENDS[1])):
        assert path.loss[at] == pytest.approx(evaluate(scale_net, reset(end), [(x, labels)]).loss, rel=1e-5)


def test_the_ends_of_a_path_are_the_networks_themselves():
    x, labels = X[:, :3], LABELS
    path = path_between(scale_net, *ENDS, [(x, labels)], points=2)
    for at, end in ((0, ENDS[0]), (-1, ENDS[1])):
        assert path.loss[at] == pytest.approx(evaluate(scale_net, end, [(x, labels)]).loss, rel=1e-5)


def test_the_barrier_of_networks_with_running_statistics():
    """One network whose statistics are those of other data at either end: re-estimated, all points are the same network."""
    x, labels = X[:, :3], LABELS
    ends = [{"gain": ENDS[0]["gain"], "batch_stats": {"std": jnp.array(std)}} for std in ([9.0, 0.1, 1.0], [0.1, 9.0, 1.0])]
    reset = resetting(scale_net_train, [(x, labels)])
    found = barrier(scale_net, *ends, [(x, labels)], points=5, reset=reset)
    assert len(found.path.loss) == 5
    assert (found.loss, found.accuracy) == (pytest.approx(0, abs=1e-6), pytest.approx(0, abs=1e-6))
    np.testing.assert_allclose(found.path.loss, evaluate(scale_net, reset(ends[0]), [(x, labels)]).loss, rtol=1e-5)
    with pytest.warns(UserWarning, match="running statistics such as 'batch_stats/std' are interpolated"):
        blended = barrier(scale_net, *ends, [(x, labels)], points=5)
    assert np.ptp(blended.path.loss) > 0.1
    assert (blended.loss, blended.accuracy) == (blended.path.barrier, blended.path.accuracy_barrier)

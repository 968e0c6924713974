"""Metrics and ensembles against float64 numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from npmerge import CrossEntropy, LogitEnsemble, PerExample, evaluate, in_order
from tests.npmerge.toys import apply, batch, log_softmax64, logits64, variables

X, LABELS = batch(0, 10)
A, B = variables(0), variables(1)


def metrics64(logits: np.ndarray) -> tuple[float, float]:
    right = logits.argmax(-1) == np.asarray(LABELS)
    return right.mean(), -log_softmax64(logits)[np.arange(len(right)), np.asarray(LABELS)].mean()


@pytest.mark.parametrize("size", [10, 4, 3], ids=lambda n: f"batches{n}")
def test_each_example_counts_once(size):
    """10 = 4 + 4 + 2 = 3 + 3 + 3 + 1: a mean of batch means would differ."""
    found = evaluate(apply, A, in_order(X, LABELS, size))
    accuracy, loss = metrics64(logits64(A, X))
    assert found.accuracy == pytest.approx(accuracy)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.examples == 10


def test_a_network_may_read_several_arrays():
    """As many as there are, whatever the number of examples."""
    whole = {"ours": X, "theirs": X}
    found = evaluate(lambda v, x: apply(v, (x["ours"] + x["theirs"]) / 2), A, [(whole, LABELS)])
    assert (found.accuracy, found.loss) == pytest.approx(metrics64(logits64(A, X)), rel=1e-5)
    with pytest.raises(ValueError, match="a batch has 10 inputs and 9 labels"):
        evaluate(apply, A, [(X, LABELS[:9])])


def test_pixels_that_were_not_scaled_are_warned_of():
    def mean(v, x):
        return jnp.float32(x).mean((1, 2))[:, None] @ v

    pixels, scaled = np.full((2, 3, 3), 255, np.uint8), np.ones((2, 3, 3), np.float32)
    with pytest.warns(UserWarning, match="inputs are uint8, numbers from 0 to 255: .* divide by 255"):
        evaluate(mean, jnp.ones((1, 2)), [(pixels, LABELS[:2] * 0)])
    evaluate(mean, jnp.ones((1, 2)), [(scaled, LABELS[:2] * 0)])
    evaluate(lambda v, x: v[x], jnp.eye(3), [(np.zeros((2, 3), np.uint8), np.zeros((2, 3), int))])  # tokens may be bytes


def test_evaluate_errors():
    with pytest.raises(ValueError, match="evaluate needs data: got no batches"):
        evaluate(apply, A, [])
    with pytest.raises(ValueError, match="labels out of range: got 1 to 3, expected 0 to 2"):
        evaluate(apply, A, [(X[:2], np.array([1, 3]))])
    with pytest.raises(ValueError, match=r"^the network, on inputs of float32 \(n, 2\), raised TypeError"):
        evaluate(apply, A, [(X[:, :2], LABELS)])
    with pytest.raises(ValueError, match="labels must be integers"):
        evaluate(apply, A, [(X[:2], np.array([1.0, 2.0]))])


def squared(outputs, targets):
    return jnp.square(outputs - targets)


def test_an_objective_takes_the_place_of_cross_entropy():
    targets = np.asarray(np.random.default_rng(1).standard_normal((10, 3)), np.float32)
    found = evaluate(apply, A, in_order(X, targets, 4), objective=PerExample(squared))  # 4 + 4 + 2: weighed by examples
    assert found.loss == pytest.approx(np.square(logits64(A, X) - targets).mean(), rel=1e-5)
    assert np.isnan(found.accuracy) and found.examples == 10
    masked = X, LABELS.at[6:].set(-1), np.arange(10) < 6
    found = evaluate(apply, A, [masked], objective=CrossEntropy())
    expected = metrics64(logits64(A, X))
    right = (logits64(A, X).argmax(-1) == np.asarray(LABELS))[:6].mean()
    assert (found.accuracy, found.examples) == (pytest.approx(right), 6)
    assert evaluate(apply, A, in_order(X, LABELS, 4), objective=CrossEntropy())[:2] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(
        ValueError, match=r"of shape \(10,\): got \(10, 3\); .*for another loss .* pass objective=, as PerExample"
    ):
        evaluate(apply, A, [(X, targets)])
    with pytest.raises(
        ValueError, match=r"an Objective as objective, PerExample\(function\) is an objective, got \(function\)"
    ):
        evaluate(apply, A, [(X, targets)], objective=squared)
    with pytest.raises(ValueError, match="evaluate needs data: got no batches"):
        evaluate(apply, A, [], objective=PerExample(squared))


def test_an_ensemble_averages_logits():
    ensemble = LogitEnsemble(apply)
    expected = (logits64(A, X) + logits64(B, X)) / 2
    np.testing.assert_allclose(ensemble((A, B), X), expected, rtol=1e-4, atol=1e-5)
    found = evaluate(ensemble, (A, B), in_order(X, LABELS, 4))
    assert (found.accuracy, found.loss) == pytest.approx(metrics64(expected), rel=1e-5)
    assert ensemble == LogitEnsemble(apply)

"""The next token against float64 numpy, with padding of all kinds."""

import jax.numpy as jnp
import numpy as np
import pytest

import npmerge as nm
from tests.contract.test_objectives import READERS, TOKENS, read
from tests.npmerge.toys import float64, log_softmax64

V = READERS[0]


def logs64(tokens: np.ndarray) -> np.ndarray:
    v = float64(V)
    seen = np.cumsum(v["table"][tokens], axis=1) / np.arange(1, tokens.shape[1] + 1)[None, :, None]
    return log_softmax64(np.tanh(seen) @ v["head"])


def expected(tokens: np.ndarray, counts: np.ndarray) -> float:
    """The mean over the tokens that count, one by one."""
    logs = logs64(np.maximum(tokens, 0)[:, :-1])
    losses = [-logs[n, t - 1, tokens[n, t]] for n in range(len(tokens)) for t in range(1, tokens.shape[1]) if counts[n, t]]
    return float(np.mean(losses))


def loss(batch) -> float:
    return float(nm.NextToken()(read, V, None, batch))


def test_tokens_alone_or_with_anything_else():
    tokens = np.asarray(TOKENS)
    want = expected(tokens, np.ones_like(tokens))
    for batch in (TOKENS, tokens.astype(np.int64), tokens.astype(np.uint16), (TOKENS, None), (TOKENS, jnp.zeros(3))):
        assert loss(batch) == pytest.approx(want, rel=1e-5)
    shifted = nm.CrossEntropy()(read, V, None, (TOKENS[:, :-1], TOKENS[:, 1:]))
    assert loss(TOKENS) == pytest.approx(float(shifted), rel=1e-6)


def test_negative_tokens_and_masks_are_padding():
    tokens = np.asarray(TOKENS)
    lengths = np.array([6, 2, 3, 6, 4, 1, 5, 6])
    real = np.arange(6)[None] < lengths[:, None]
    want = expected(tokens, real)
    assert loss(jnp.asarray(np.where(real, tokens, -100))) == pytest.approx(want, rel=1e-5)
    assert loss((TOKENS, None, jnp.asarray(real))) == pytest.approx(want, rel=1e-5)
    some = jnp.asarray(lengths > 2)
    assert loss((TOKENS, None, some)) == pytest.approx(
        expected(tokens, np.broadcast_to(lengths[:, None] > 2, (8, 6))), rel=1e-5
    )
    assert loss((jnp.asarray(np.where(real, tokens, -1)), None, some)) == pytest.approx(
        expected(tokens, real & (lengths[:, None] > 2)), rel=1e-5
    )
    assert abs(want - expected(tokens, np.ones_like(tokens))) > 1e-3


def test_what_is_no_tokens():
    check = nm.NextToken().checker(read, V, None, TOKENS)
    check(TOKENS)
    check(jnp.where(TOKENS > 2, -1, TOKENS))
    check((TOKENS.at[0, -1].set(9), None, jnp.ones((8, 6), bool).at[0, -1].set(False)))  # padding may be anything
    few = TOKENS[:, :3]  # fewer predictions than there are tokens in the vocabulary
    nm.NextToken().checker(read, V, None, few)(few.at[0, 0].set(4))
    for wrong, message in (
        (TOKENS.astype(jnp.float32), r"tokens must be integers \(examples, length\).*of float32"),
        (TOKENS[:, :1], r"with a length of two or more: got \(8, 1\)"),
        (TOKENS[0], r"got \(6,\)"),
        (TOKENS.at[2, 0].set(5), "tokens out of range: got 5"),
        (TOKENS.at[2, 3].set(5), "tokens out of range: got 5, the network has logits of 5"),
        (
            (TOKENS, None, jnp.ones((8, 5), bool)),
            r"the mask is of shape \(8, 5\), the tokens that it belongs to are of \(8, 6\)",
        ),
        ((TOKENS, None, jnp.ones(8)), "a mask must be of bool"),
    ):
        with pytest.raises(ValueError, match=message):
            check(wrong)
    with pytest.raises(ValueError, match="apply must return logits"):
        nm.NextToken().checker(lambda v, x: x[:, 0], V, None, TOKENS)


def test_bare_tokens_are_learned_and_held_out():
    import optax

    loss = nm.fine_tuning(read, nm.NextToken())
    result = nm.fit(V, loss, None, [TOKENS], optax.adam(0.05), steps=20, held_out=[TOKENS], every=10)
    assert result.history.held_out_loss[-1] < result.history.held_out_loss[0] - 0.1

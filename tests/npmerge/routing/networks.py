"""Small residual networks whose blocks are routed, and the same in NumPy."""

import jax.numpy as jnp
import numpy as np

WIDTH, HIDDEN, DEPTH, OUTPUTS = 4, 5, 3, 2
OWN = [[k] for k in range(DEPTH)]
PATTERN = r"blocks/(\d+)/mlp/"


def network(xp, v, x, mlp):
    """A residual network; `mlp(number, stream)` is the branch of a block."""
    for number, block in enumerate(v["blocks"]):
        mean = x.mean(-1, keepdims=True)
        normal = (x - mean) / xp.sqrt(xp.square(x - mean).mean(-1, keepdims=True) + 1e-5)
        x = x + mlp(number, normal * xp.reshape(block["norm"]["scale"], (1, 1, -1)))
    return x @ v["head"]


def branch(xp, mlp, x):
    return xp.tanh(x @ mlp["up"] + xp.reshape(mlp["bias"], (1, 1, -1))) @ mlp["down"]


def apply(v, x):
    return network(jnp, v, x, lambda k, y: branch(jnp, v["blocks"][k]["mlp"], y))


def mlp_of(rng):
    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return {"up": draw(WIDTH, HIDDEN), "bias": draw(HIDDEN), "down": draw(HIDDEN, WIDTH)}


def experts(count, seed=0):
    """Networks that differ in their MLPs only."""
    rng = np.random.default_rng(seed)
    norms = [{"scale": rng.uniform(0.5, 1.5, WIDTH).astype(np.float32)} for _ in range(DEPTH)]
    head = rng.normal(size=(WIDTH, OUTPUTS)).astype(np.float32)
    return [{"blocks": [{"norm": n, "mlp": mlp_of(rng)} for n in norms], "head": head} for _ in range(count)]


def inputs(seed=1, n=2, t=3):
    return np.random.default_rng(seed).normal(size=(n, t, WIDTH)).astype(np.float32)


def in_numpy(models, x, weigh, pools):
    """The routed network in float64: `weigh(number, features)` are weights (..., experts), `pools` as lists of blocks."""
    models = [_wide(model) for model in models]

    def mlp(number, features):
        weights = weigh(number, features)
        made = [branch(np, model["blocks"][j]["mlp"], features) for j in pools[number] for model in models]
        return sum(weights[..., k, None] * y for k, y in enumerate(made))

    return network(np, models[0], x.astype(np.float64), mlp)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _wide(tree):
    if isinstance(tree, dict):
        return {name: _wide(x) for name, x in tree.items()}
    return [_wide(x) for x in tree] if isinstance(tree, list) else tree.astype(np.float64)

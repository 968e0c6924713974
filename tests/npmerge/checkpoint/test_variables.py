"""Small networks of Flax NNX, Linen, Equinox and Haiku: by path, through every format that is written, and back."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from npmerge.checkpoint import msgpack, npz, orbax, orbax_writer
from npmerge.checkpoint.sharded import open_model
from npmerge.checkpoint.stored import StoredModel
from npmerge.checkpoint.variables import variables_of, with_variables

X = jnp.ones((2, 3))


class NNX(nnx.Module):
    def __init__(self, seed: int):
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])
        self.norm, self.drop = nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.half = nnx.Param(jnp.full((4,), seed + 0.5, jnp.bfloat16))

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.norm(x, use_running_average=True) * self.half[...].astype(x.dtype)[None]


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.BatchNorm(use_running_average=True)(nn.Dense(4)(nn.relu(nn.Dense(4)(x))))


def haiku_network(x: jax.Array, training: bool = False) -> jax.Array:
    return hk.BatchNorm(True, True, 0.9)(hk.nets.MLP([4, 4])(x), is_training=training)


HAIKU = hk.without_apply_rng(hk.transform_with_state(haiku_network))
MODELS: dict[str, tuple[Callable[[int], Any], Callable[[Any], Any], set[str]]] = {
    "nnx module": (NNX, lambda model: model(X), {"layers/0/kernel", "norm/mean", "half", "drop/rngs/key", "drop/rngs/count"}),
    "nnx state": (
        lambda seed: nnx.state(NNX(seed)),
        lambda state: nnx.merge(nnx.graphdef(NNX(7)), state)(X),
        {"layers/1/bias", "norm/scale"},
    ),
    "linen": (
        lambda seed: Linen().init(jax.random.key(seed), X),
        lambda variables: Linen().apply(variables, X),
        {"params/Dense_0/kernel", "batch_stats/BatchNorm_0/mean"},
    ),
    "equinox": (
        lambda seed: eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(seed)),
        lambda model: jax.vmap(model)(X),
        {"layers/0/weight", "layers/1/bias"},
    ),
    "haiku": (
        lambda seed: HAIKU.init(jax.random.key(seed), X, True),
        lambda both: HAIKU.apply(*both, X)[0],
        {"0/mlp/~/linear_0/w", "1/batch_norm/~/mean_ema/average"},
    ),
}


def _safetensors(path: Path, arrays: Mapping[str, Any]) -> StoredModel:
    save_file({name: np.asarray(x) for name, x in arrays.items()}, path.with_suffix(".safetensors"))
    return open_model(path.with_suffix(".safetensors"))


def _npz(path: Path, arrays: Mapping[str, Any]) -> StoredModel:
    model = _safetensors(path, arrays)
    with path.with_suffix(".npz").open("wb") as file:
        npz.write(file, model, lambda entry: iter([model.read(entry.name)]))
    return npz.open_file(path.with_suffix(".npz"))


def _orbax(path: Path, arrays: Mapping[str, Any]) -> StoredModel:
    orbax_writer.write(path, arrays)
    return orbax.open_file(path)


def _orbax_in_parts(path: Path, arrays: Mapping[str, Any]) -> StoredModel:
    orbax_writer.write(path, _safetensors(path, arrays))
    return orbax.open_file(path)


def _msgpack(path: Path, arrays: Mapping[str, Any]) -> StoredModel:
    from flax.serialization import msgpack_serialize

    path.write_bytes(msgpack_serialize(dict(arrays)))
    return msgpack.open_file(path)


def same(left: Any, right: Any) -> bool:
    return left.dtype == right.dtype and np.asarray(left).tobytes() == np.asarray(right).tobytes()


@pytest.mark.parametrize("kind", MODELS)
def test_variables_come_back_through_every_format(kind: str, tmp_path: Path) -> None:
    make, apply, some = MODELS[kind]
    model, other = make(0), make(1)
    arrays, before = variables_of(model), variables_of(other)
    assert some <= set(arrays)
    outputs = apply(model)
    assert not np.array_equal(apply(other), outputs)
    for number, through in enumerate((lambda _, x: x, _safetensors, _npz, _orbax, _orbax_in_parts, _msgpack)):
        back = with_variables(other, through(tmp_path / f"x{number}", arrays))
        assert type(back) is type(other)
        got = variables_of(back)
        assert list(got) == list(arrays) and all(same(got[name], arrays[name]) for name in arrays)
        assert jnp.array_equal(apply(back), outputs)
    assert all(same(variables_of(other)[name], before[name]) for name in before)


def test_every_fault_is_told_at_once() -> None:
    model = MODELS["linen"][0](0)
    arrays = variables_of(model)
    del arrays["params/Dense_0/bias"]
    arrays["params/Dense_9/bias"] = np.zeros(4)
    arrays["params/Dense_1/kernel"] = np.zeros((4, 5))
    with pytest.raises(ValueError, match="do not fit the model") as caught:
        with_variables(model, arrays)
    for fault in (
        "'params/Dense_0/bias' is missing",
        "'params/Dense_9/bias' is unexpected",
        "'params/Dense_1/kernel' has the shape (4, 5), expected (3, 4)",
    ):
        assert fault in str(caught.value)


def test_dtypes_are_those_that_are_given_and_abstract_models_are_filled() -> None:
    model = jax.eval_shape(lambda: Linen().init(jax.random.key(0), X))
    given = {name: np.ones(x.shape, ml_dtypes.bfloat16) for name, x in variables_of(model).items()}
    assert all(x.dtype == jnp.bfloat16 for x in variables_of(with_variables(model, given)).values())


def test_keys_of_jax_random_keep_their_kind() -> None:
    model, other = ({"key": jax.random.key(seed, impl="rbg"), "w": np.ones(2)} for seed in (0, 1))
    back = with_variables(other, variables_of(model))
    assert back["key"] == model["key"] and isinstance(back["w"], np.ndarray)


@pytest.mark.parametrize(
    ("model", "message"),
    [({"a/b": np.ones(1), "a": {"b": np.ones(1)}}, "two arrays have the path 'a/b'"), ({"a": 1.0}, "got dict without any")],
)
def test_models_without_paths_of_their_own_are_refused(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        variables_of(model)

"""An aligned pool: experts in the space of the stream that all of them read once their blocks are mixed.

An expert was fine-tuned on the stream that its own blocks make. In a routed network it reads another one. For each block the
rotation is found that brings its own stream onto the mixed one, at the same tokens (Procrustes), and its first and last layer
take that rotation in: f'(x) = f(x R^T) R. The trunk stays as it is. Where experts agree every R is the identity.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import npmerge as nm
from alignment.graph import PyTree, path_name
from experiments.compatible_specialization.networks import BLOCKS
from experiments.compatible_specialization.similarity import block_of
from experiments.language import graph_of

Rotation = Float[np.ndarray, "width width"]


def aligned_pool(apply: Callable[..., PyTree], experts: Sequence[PyTree], batches: Sequence[tuple]) -> list[PyTree]:
    """The experts, each block rotated to what the average of their features reads.

    Args:
        apply: the network of one expert.
        experts: of one trunk.
        batches: whose inputs the streams are compared at; their targets are not read.
    """
    routed = nm.route(apply, experts, BLOCKS, batches[0][0], nm.FeatureAveraging())
    mixed = _streams(routed.apply, routed.variables, batches, "experts/0/")
    own = [_streams(apply, expert, batches, "") for expert in experts]
    turns = [{k: procrustes(streams[k], mixed[k]) for k in mixed} for streams in own]
    return [turned(expert, turn) for expert, turn in zip(experts, turns, strict=True)]


def procrustes(own: Float[np.ndarray, "samples width"], wanted: Float[np.ndarray, "samples width"]) -> Rotation:
    """The orthogonal R of least |own R - wanted|^2 (Schoenemann 1966)."""
    u, _, v = np.linalg.svd(own.T.astype(np.float64) @ wanted.astype(np.float64))
    return u @ v


def turned(expert: PyTree, rotations: Mapping[int, Rotation]) -> PyTree:
    """With feed-forward networks that read and make features in other axes: f'(x) = f(x R^T) R."""

    def leaf(path: tuple, x: Array) -> Any:
        name = path_name(path)
        if "/feed_forward/" not in name:
            return x
        turn = jnp.asarray(rotations[block_of(name)], x.dtype)
        if "/up/" in name:
            return turn.T @ x if x.ndim == 2 else x
        return x @ turn

    return jax.tree_util.tree_map_with_path(leaf, expert)


def _streams(apply: Callable[..., PyTree], variables: PyTree, batches: Sequence[tuple], where: str) -> dict[int, np.ndarray]:
    """What each block reads, (samples, width), by its number."""
    graph = graph_of(apply, variables, batches[0][0])
    names = [s.name for s in graph.sites if s.name.startswith(where) and "/feed_forward/up/" in s.name]
    found = [nm.capture(apply, graph, variables, inputs, nodes=(), sites=names).sites for inputs, _ in batches]
    return {block_of(name): np.concatenate([np.asarray(f[name].inputs) for f in found]) for name in names}

"""BatchNorm's scale inside the convolution before it, so that linear maps may mix channels of one scale.

A permutation moves BatchNorm's scale along with its channel. A map that mixes channels cannot: scales are no features, and
convolutions are mixed before they are normalised. The published code maps scales like biases nevertheless.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from alignment.graph import PyTree, flatten

EPSILON = 1e-5
"""Of BatchNorm in `npmerge.models`."""


def folded(variables: PyTree) -> PyTree:
    """The same function, in which every BatchNorm has the scale and the variance 1.

    Args:
        variables: of an architecture of `npmerge.models`, whose `norm` stands behind `conv`, with the same number.

    Raises:
        ValueError: no BatchNorm.
    """
    found = flatten(variables)
    new: dict[str, Array] = {}
    for norm in norms(variables):
        scale, mean, var = (found[f"{place}/{norm}/{name}"] for place, name in _LEAVES)
        factor = scale / jnp.sqrt(var + EPSILON)
        conv = f"params/{before(norm)}"
        for path in (f"{conv}/kernel", f"{conv}/bias"):
            if path in found:
                new[path] = jnp.einsum("...o,o->...o", found[path], factor)
        new |= {f"params/{norm}/scale": jnp.ones_like(scale), f"batch_stats/{norm}/mean": mean * factor}
        new[f"batch_stats/{norm}/var"] = jnp.full_like(var, 1 - EPSILON)
    return jax.tree.unflatten(jax.tree.structure(variables), [new.get(path, x) for path, x in found.items()])


def scaled_as(variables: PyTree, reference: PyTree) -> PyTree:
    """A network whose every BatchNorm has the scale that it has in the reference, without its sign.

    What the reference's channels vary by, behind its BatchNorm, is that: with statistics of its own an average varies as much.
    """
    theirs = flatten(reference)
    scales = {f"params/{norm}/scale": abs(theirs[f"params/{norm}/scale"]) for norm in norms(reference)}
    return jax.tree.unflatten(jax.tree.structure(variables), [scales.get(path, x) for path, x in flatten(variables).items()])


def norms(variables: PyTree) -> list[str]:
    """The paths of all BatchNorms. Raises ValueError if there is none."""
    found = [path.removeprefix("batch_stats/").removesuffix("/var") for path in flatten(variables) if path.endswith("/var")]
    if not found:
        raise ValueError("nothing to fold: the network has no BatchNorm")
    return found


def before(norm: str) -> str:
    """The path of the convolution before a BatchNorm."""
    *above, last = norm.split("/")
    return "/".join([*above, last.replace("norm", "conv")])


_LEAVES = (("params", "scale"), ("batch_stats", "mean"), ("batch_stats", "var"))

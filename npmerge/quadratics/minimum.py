"""The minimum of a sum of quadratic forms over a tree, sum_m C_m p = sum_m C_m p_m, by conjugate gradients.

What an operator sees of its tensor are matrices, one for each linear site and copy. Those of equal shape are solved together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.graph import PyTree, flatten, path_name
from alignment.names import is_statistic
from alignment.sites import Use
from npmerge.arithmetic import mean
from npmerge.quadratics.conjugate_gradients import Factors, Residuals, Rule, solved
from npmerge.quadratics.operators import Diagonal, Gram, Kronecker, Operator, is_operator

__all__ = ["Residuals", "Rule", "minimised"]


class Part(NamedTuple):
    """Matrices that an operator sees of a tensor: of its site, if it has any. Models come once for each use of the weight."""

    name: str
    site: Use | None
    factors: Factors
    models: Float[Array, "models systems rows columns"]
    start: Float[Array, "systems rows columns"]


def minimised(operators: PyTree, models: PyTree, start: PyTree, rule: Rule) -> tuple[PyTree, dict[str, Residuals]]:
    """The minimum as far as the rule goes from `start`, and what is left: of each site, or tensor where there are none.

    Where an operator is the identity that is the mean, after one iteration if any. Running statistics are averaged.

    Args:
        operators: an `Operator` for each leaf of the models.
        models: a tree with leaves (models, ...), in the precision to compute in.
        start: a tree like one of the models.
        rule: when to stop.
    """
    parts, results = [], {}
    leaves = zip(flatten(models).items(), jax.tree.leaves(start), jax.tree.leaves(operators, is_leaf=is_operator), strict=True)
    for (path, x), begin, operator in leaves:
        averaged = rule.iterations > 0 or is_statistic(path)
        results[path] = mean(x) if averaged else begin
        parts += [] if is_statistic(path) else _parts(path, operator, x, begin)
    found = _side_by_side(parts, rule)
    for part, (x, _) in zip(parts, found, strict=True):
        path = part.name if part.site is None else part.site.path
        old = results[path]
        results[path] = x.reshape(old.shape) if part.site is None else _replaced(part.site, old, x)
    merged = jax.tree_util.tree_map_with_path(lambda path, _: results[path_name(path)], start)
    return merged, {part.name: residuals for part, (_, residuals) in zip(parts, found, strict=True)}


def _parts(path: str, operator: Operator, models: Float[Array, "models ..."], start: Float[Array, "..."]) -> list[Part]:
    if isinstance(operator, Diagonal):
        values, x = (a.astype(start.dtype).reshape(len(models), 1, 1, -1) for a in (operator.values, models))
        return [Part(path, None, Factors(diagonal=values), x, start.reshape(1, 1, -1))]
    if isinstance(operator, Gram):
        return [_of_site(site, (g,), models, start) for site, g in zip(operator.sites, operator.grams, strict=True)]
    if isinstance(operator, Kronecker):
        pairs = zip(operator.inputs, operator.gradients, strict=True)
        return [_of_site(site, pair, models, start) for site, pair in zip(operator.sites, pairs, strict=True)]
    return []


def _of_site(site: Use, factors: tuple[Array, ...], models: Array, start: Array) -> Part:
    def flat(x: Array) -> Array:
        return x.astype(start.dtype).reshape(len(x), -1, *x.shape[-2:])

    matrices = flat(jax.vmap(site.matrix)(models))
    matrices = jnp.concatenate([matrices] * (len(factors[0]) // len(models)))  # a weight of several sites: they all add up
    return Part(site.name, site, Factors(None, *map(flat, factors)), matrices, flat(site.matrix(start)[None])[0])


def _replaced(site: Use, leaf: Array, x: Float[Array, "systems rows columns"]) -> Array:
    return site.replaced(leaf, x.reshape(jax.eval_shape(site.matrix, leaf).shape))


def _side_by_side(parts: list[Part], rule: Rule) -> list[tuple[Array, Residuals]]:
    """Those of equal shape together."""
    groups: dict[tuple, list[int]] = {}
    for k, part in enumerate(parts):
        groups.setdefault((jax.tree.structure(part.factors), part.start.shape[1:]), []).append(k)
    found: dict[int, tuple[Array, Residuals]] = {}
    for members in groups.values():
        several = [parts[k] for k in members]
        factors, models = jax.tree.map(lambda *x: jnp.concatenate(x, 1), *((p.factors, p.models) for p in several))
        x, residuals = solved(factors, models, jnp.concatenate([p.start for p in several]), rule)
        ends = np.cumsum([len(p.start) for p in several])[:-1].tolist()
        each = zip(jnp.split(x, ends), jnp.split(residuals, ends, axis=1), strict=True)
        found |= dict(zip(members, each, strict=True))
    return [found[k] for k in range(len(parts))]

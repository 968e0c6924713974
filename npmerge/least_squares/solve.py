"""Layerwise least squares: the weights of a merged network solved layer by layer, so that it computes what its parents do."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignment.checks import check_count, check_number
from alignment.graph import Graph, PyTree
from alignment.maps import Maps
from npmerge.batches import measured
from npmerge.heads.multi_head import Headed
from npmerge.least_squares.descent import Descent
from npmerge.least_squares.normal_equations import Change, Sums, add_sums, bytes_of, no_sums, solved
from npmerge.least_squares.pieces import Piece, Pieces
from npmerge.least_squares.prepared import Prepared, prepared
from npmerge.least_squares.targets import Apply, Networks, Targets
from npmerge.least_squares.upstream import upstream
from npmerge.linear_layers import Layer
from npmerge.normalisation import TrainApply


class Solved(NamedTuple):
    """What `LeastSquares` returns, sites by name.

    Attributes:
        variables: the merged network, for `resize(apply, graph, variables)` to run, or `headed.apply`.
        before: ||Z_in W + b - Z_out|| / ||Z_out|| at the start, over all batches.
        after: the same with what was found, before it is rounded to the stored dtypes. Of the closed form it is known to about
            1e-3 of `before`.
        left: sites that stayed as they were, with the reason.
        singular: sites whose inputs, in the data, do not determine their weights: what was not seen stays as at the start.
        headed: the merged network with a head for each model, where they keep their own; else None.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"]
        >>> models = [{"w": jnp.eye(2), "u": jnp.eye(2)}] * 2
        >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> graph, maps = nm.trace(apply, models[0], x), [{"w": alignment.identity(2)}] * 2
        >>> start = {"w": jnp.eye(2), "u": 2 * jnp.eye(2)}
        >>> found = nm.LeastSquares(ridge=0.0)(apply, graph, models, maps, [(x, None)], merged=start)
        >>> {site: (round(found.before[site], 2), round(found.after[site], 2)) for site in found.before}
        {'w': (0.0, 0.0), 'u': (1.0, 0.0)}
    """

    variables: PyTree
    before: dict[str, float]
    after: dict[str, float]
    left: dict[str, str]
    singular: tuple[str, ...]
    headed: Headed | None = None


@dataclass(frozen=True)
class LeastSquares:
    """The layers of a merged network that best map what it reads to what its parents make of it (Nasery et al. 2024, PLeaS).

    For networks whose units were merged, kept apart or both by an alignment's maps, each linear site l of the merged network
    gets the weight and bias that minimise

        || Z_in W + 1 b^T - Z_out ||^2 + r (||W - W_0||^2 + ||b - b_0||^2),   r = ridge * tr(G) / rows,

    with Z_out = mean_k push_k (y_k + b_k), the parents' outputs in the units of the merged network, and Z_in = mean_k push_k
    x_k, their inputs: a unit of one model alone carries that model's feature, a merged one the mean. W_0 is the average of the
    transported models. Only blocks move in which some model has units on both sides, so that what is kept apart stays apart.
    Norms, embeddings and what is not a linear site stay at the average, and so do running statistics without `train_apply`.
    Networks with different numbers of outputs keep their heads, each as its own map makes it (`multi_head`).

    Attributes:
        ridge: how strongly the start holds, as a share of the mean square of an input. 0 moves only what the data determine.
        sequential: let each site read what the merged network itself computes once all earlier sites are replaced, rather than
            the parents' inputs: errors do not add up over the layers, for one pass of the merged network over the data for each
            site. Closed form only.
        method: "closed" solves the normal equations; "gradient" descends, as published, on the mean squared errors of all sites
            jointly with Adam, its rate falling to zero along a cosine, and keeps the start where that was better.
        steps: of the descent, one batch each.
        learning_rate: of the descent.
        memory_limit: bytes for the normal equations held at once and for solving one of them, again for the features of the
            examples gone through at once, and where `sequential` for what sites should make of all examples, on the host: the
            parents are run once for as many sites as that holds. The descent takes whole batches.

    Raises:
        ValueError: another method, numbers that are negative (steps, rate and memory must be above 0), a sequential descent.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"]
        >>> models = [{"w": jnp.eye(2), "u": jnp.eye(2)}, {"w": jnp.eye(2), "u": 3 * jnp.eye(2)}]
        >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> graph, maps = nm.trace(apply, models[0], x), [{"w": alignment.identity(2)}] * 2
        >>> start = {"w": jnp.eye(2), "u": jnp.ones((2, 2))}
        >>> found = nm.LeastSquares(ridge=0.0)(apply, graph, models, maps, [(x, None)], merged=start)
        >>> print(jnp.abs(found.variables["u"]).round(3))  # the parents' outputs are 1 and 3 times what it reads
        [[2. 0.]
         [0. 2.]]
    """

    ridge: float = 1e-4
    sequential: bool = False
    method: Literal["closed", "gradient"] = "closed"
    steps: int = 400
    learning_rate: float = 5e-4
    memory_limit: float = 4e9

    def __post_init__(self) -> None:
        if self.method not in ("closed", "gradient"):
            raise ValueError(f"method must be 'closed' or 'gradient', got {self.method!r}")
        check_number("ridge", self.ridge)
        check_count("steps", self.steps)
        check_number("learning_rate", self.learning_rate, positive=True)
        check_number("memory_limit", self.memory_limit, positive=True)
        if self.sequential and self.method == "gradient":
            raise ValueError("sequential needs method='closed': the descent moves all sites at once")

    def __call__(
        self,
        apply: Apply | Sequence[Apply],
        graph: Graph | Sequence[Graph],
        models: Sequence[PyTree],
        maps: Sequence[Maps],
        batches: Iterable[tuple],
        *,
        merged: PyTree | None = None,
        train_apply: TrainApply | Sequence[TrainApply] | None = None,
        heads: bool = False,
        progress: Callable[[int, int], Any] | None = None,
    ) -> Solved:
        """Solve for the layers of the merged network.

        Args:
            apply: the network in evaluation mode, which the graph was traced from; every example must be looked at alone. For
                networks of different widths or numbers of outputs one for each model, as for graph.
            graph: its graph.
            models: the original networks, as they were before any alignment.
            maps: for each model a map for each node, as an `Alignment` returns them; all models must get the same widths.
            batches: `(inputs, targets)`; targets are not read. They are gone through several times.
            merged: the network to start from, the average of the transported models by default.
            train_apply: the (first) network in training mode, or one for each, if it has running statistics. They are
                re-estimated from the batches, which should then be of one size, as by `reset_statistics`: all of them at the
                end, and where `sequential` before each site those that it and its neighbours read, so that it is fitted to
                what the network computes with the statistics that it ends with. Without, re-estimate them yourself, but not
                where `sequential`: later layers are fitted to those that are there.
            heads: whether models with equal outputs keep their heads, too: for tasks of their own.
            progress: called where layers have been solved, with how many are done and how many there are.

        Raises:
            ValueError: no models, no batches, another number of maps, maps that do not fit the graph or lead to different
                widths, variables of another structure, features that are not finite, a descent that diverged, a site whose
                normal equations need more than `memory_limit` bytes, or what `reset_statistics` raises.
        """
        every = list(measured(batches))
        if not every:
            raise ValueError("least squares needs data: got no batches")
        inputs = [x for x, *_ in every]
        given: dict[str, Any] = {"merged": merged, "train_apply": train_apply, "heads": heads}
        found = prepared(apply, graph, models, maps, inputs[0], own_inputs=self.sequential, **given)
        result = self._solved(found, every, progress) if self.method == "closed" else self._descended(found, every)
        if found.headed is not None:
            headed = found.headed.sharing(result.variables).renewed(every)
            return result._replace(variables=headed.variables, headed=headed)
        return result._replace(variables=found.renewed(result.variables, every))

    def _descended(self, found: Prepared, batches: list[tuple]) -> Solved:
        descent = Descent(self.steps, self.learning_rate, self.memory_limit)
        new, before, after = descent(found, batches)
        return Solved(found.layers.replaced(new, found.start), before, after, found.left, ())

    def _solved(self, found: Prepared, batches: list[tuple], progress: Callable[[int, int], Any] | None) -> Solved:
        layers, variables, inputs = found.layers, found.start, [x for x, *_ in batches]
        pieces = Pieces(found.targets, found.networks, found.names, inputs, self.memory_limit)
        before: dict[str, float] = {}
        after: dict[str, float] = {}
        singular: list[str] = []
        before_site = {}
        if self.sequential and found.train_apply is not None:
            before_site = upstream(found.targets, variables, found.names, inputs[0])
        for names in self._rounds(found):
            networks = found.networks
            if self.sequential:
                variables = found.renewed(variables, batches, before_site.get(names[0]))
                networks, data = networks._replace(merged=variables), pieces.of(*names)
            else:
                data = map(Piece, found.targets.pieces(names, networks, inputs, self.memory_limit))
            now = layers.several(names, variables)
            new = {}
            for name, sums in _sums(found.targets, now, networks, data).items():
                change = _solve(name, sums, found.allowed(name), self.ridge)
                new[name] = _changed(now[name], change)
                left_over = max(float(sums.errors.missing) - change.gain, 0.0)
                before[name] = sums.errors.relative()
                after[name] = sums.errors._replace(missing=left_over).relative()
                singular += [name] * change.singular
            variables = layers.replaced(new, variables)
            if progress is not None:
                progress(len(after), len(found.names))
        return Solved(variables, before, after, found.left, tuple(singular))

    def _rounds(self, found: Prepared) -> Iterator[tuple[str, ...]]:
        """The sites in groups that are solved at once: one after the other, or as many as the memory holds."""
        group: list[str] = []
        used, most = 0, 0
        for name in found.names:
            size, solving = bytes_of(jax.eval_shape(functools.partial(found.layers.layer, name), found.start))
            if size + solving > self.memory_limit:
                raise ValueError(
                    f"the normal equations of site {name!r} need {size} bytes and {solving} to be solved, more than "
                    f"memory_limit={self.memory_limit:g}: raise memory_limit, or use method='gradient', which needs none"
                )
            if group and (self.sequential or used + size + max(most, solving) > self.memory_limit):
                yield tuple(group)
                group, used, most = [], 0, 0
            group.append(name)
            used, most = used + size, max(most, solving)
        if group:
            yield tuple(group)


def _sums(targets: Targets, now: Mapping[str, Layer], networks: Networks, data: Iterable[Piece]) -> dict[str, Sums]:
    total = no_sums(now)
    for piece in data:
        total = add_sums(targets, total, now, networks, piece)
    found: dict[str, Sums] = jax.device_get(total)
    return {name: found[name] for name in now}  # in the order of the network, which jit does not keep


def _changed(layer: Layer, change: Change) -> Layer:
    matrix, rows = np.asarray(layer.matrix, np.float64), layer.matrix.shape[-2]
    new = _rounded(matrix + change.change[..., :rows, :])
    if layer.bias is None:
        return Layer(new, None)
    return Layer(new, _rounded(np.asarray(layer.bias, np.float64) + change.change[..., rows, :]))


def _rounded(x: np.ndarray) -> Array:
    """On the host: on a device every shape would be compiled."""
    return jnp.asarray(x.astype(np.float32), np.float32)


def _solve(name: str, sums: Sums, allowed: np.ndarray, ridge: float) -> Change:
    try:
        return solved(sums, allowed, ridge)
    except ValueError as error:
        raise ValueError(f"site {name!r}: {error}") from error

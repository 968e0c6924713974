"""Networks into the units of the first, as the `align:` block and `npmerge align` have them."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from alignment import Alignment, Graph, align, trace
from alignment.graph import PyTree
from npmerge.learning.architectures import Architecture
from npmerge.learning.data import Examples, whole
from npmerge.learning.places import inside
from npmerge.learning.values import alignment_of
from npmerge.models import example
from npmerge.normalisation import reset_statistics
from npmerge.recipe.blocks import Align
from npmerge.recipe.schema import Recipe
from npmerge.reports.progress import Advance, stage, unsaid
from npmerge.statistics.collect import collect


class Functions(NamedTuple):
    """A network as functions.

    Attributes:
        apply: `(variables, inputs) -> outputs` in evaluation mode.
        train_apply: `(variables, inputs) -> (outputs, variables with new statistics)`; None for networks without.
    """

    apply: Callable[..., Any]
    train_apply: Callable[..., Any] | None


def aligned(
    recipe: Recipe,
    block: Align,
    network: Architecture,
    models: Sequence[PyTree],
    data: Examples | None,
    *,
    advance: Advance = unsaid,
) -> list[PyTree]:
    """The networks of a recipe in the units of the first.

    Args:
        recipe: for the lines of errors.
        block: of it.
        network: as functions.
        models: variables.
        data: for alignments that need activations, and for BatchNorm where maps are approximate.
        advance: told what is being done.

    Raises:
        ValueError: data that are missing, networks that the alignment cannot align (file and line).
    """
    method = alignment_of(recipe, block)
    if method.needs and data is None:
        raise recipe.error(("align",), f"{block.method} needs activations: give examples of the task as data")
    if network.config is None and data is None:
        raise recipe.error(("align",), "a network of your own is traced with examples: give them as data")
    inputs = example(network.config) if data is None and network.config is not None else data.inputs[:2]  # type: ignore[union-attr]
    advance("tracing")
    graph = trace(network.apply, models[0], inputs)
    advance(f"aligning by {block.method}")
    batches = [] if data is None else data.batches(block.batch_size)
    functions = Functions(network.apply, network.train_apply)
    with inside(recipe, ("align",)):
        key = jax.random.key(block.seed)
        found = in_units_of_first(method, graph, functions, models, batches=batches, key=key, advance=advance)
    if jax.tree.map(jnp.shape, found) != jax.tree.map(jnp.shape, list(models)):
        message = (
            f"{block.method} makes networks of other widths, and a recipe keeps the reference's: npmerge align merges those"
        )
        raise recipe.error(("align", "method"), message)
    return found


def in_units_of_first(
    method: Alignment,
    graph: Graph,
    network: Functions,
    models: Sequence[PyTree],
    *,
    batches: list[tuple],
    key: Array,
    advance: Advance = unsaid,
) -> list[PyTree]:
    """Networks in the units of the first; where maps are approximate, running statistics are estimated anew.

    Args:
        method: the alignment.
        graph: of the networks.
        network: as functions.
        models: variables.
        batches: `(inputs, targets)` for activations and statistics; empty where neither is needed.
        key: of what is random.
        advance: told what is being done besides.

    Raises:
        ValueError: as `align`.
    """
    stats = None
    if method.needs:
        told = stage(advance, "activations", len(batches))
        stats = collect(network.apply, graph, models, batches, list(method.needs), progress=told)
        advance("matching units")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "approximate maps leave running statistics")  # re-estimated below
        found = align(method, graph, models, stats=stats, key=key)
    if not getattr(method, "approximate", False) or network.train_apply is None or not batches:
        return found
    advance("statistics of BatchNorm")
    return [found[0], *(reset_statistics(network.train_apply, x, whole(batches)) for x in found[1:])]

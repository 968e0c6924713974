"""The networks of a merge as functions: what they were, aligned, averaged, and merged."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alignment import Graph, trace, verify
from alignment.graph import PyTree, flatten
from alignment.names import is_statistic
from npmerge.arithmetic import mean_of
from npmerge.checkpoint.held import HeldModel
from npmerge.checkpoint.stored import StoredModel
from npmerge.checkpoint.tensors import tensors_of
from npmerge.commands.align_inputs import BATCH, SAMPLE, Data, sample_of
from npmerge.commands.align_measures import Change, Measured, correlations, output_change, path_to, squared_distance
from npmerge.commands.align_page import points_of, row_of
from npmerge.commands.planning import Planned
from npmerge.commands.report_headlines import AVERAGE, RESULT
from npmerge.commands.report_judged import judged, rows_of
from npmerge.folder.configs import changed_config
from npmerge.learning.blocks import Blocks
from npmerge.learning.chosen import architecture_of
from npmerge.learning.data import Examples, common, read_examples, whole
from npmerge.learning.judged import is_headless
from npmerge.learning.learner import MOST, RESET
from npmerge.learning.measuring import has_labels
from npmerge.learning.members import members_of
from npmerge.learning.tasks import Tasks, joined_examples
from npmerge.learning.user_code import check_takes
from npmerge.normalisation import reset_statistics
from npmerge.paths import Path as LossPath
from npmerge.recipe.examples import Data as Named
from npmerge.recipe.named import Named as Network
from npmerge.reports.progress import Advance

POINTS = 11
"""Networks on each path, both ends included."""

MOST_EXAMPLES = 1_000
"""Examples that paths and correlations are measured on at most, since each path takes as long as eleven evaluations."""

UNALIGNED, ANEW = "average without alignment", "merged, statistics anew"
"""What rows are called that are no model's."""

ROWS = (RESULT, AVERAGE, UNALIGNED, ANEW, "base")


class Networks:
    """The networks of one merge.

    Args:
        planned: the merge.
        result: what it has made.
        advance: told what is being done.
        architecture: its name, where the recipe has none; None to tell it by the tensors.

    Raises:
        ValueError: tensors that no known network has, or parts of the plan that are of different models.
    """

    def __init__(self, planned: Planned, result: StoredModel, advance: Advance, architecture: str | None = None):
        self.plan, self.advance = planned.plan, advance
        self.blocks = planned.blocks or _without_blocks(planned, architecture)
        self.recipe, self.network = self.blocks.recipe, self.blocks.network
        self.names = [f"model {name}" if name in ROWS else name for name in self.blocks.names]
        found, based = self.blocks.stored(), self.blocks.members.base is not None
        self.base: PyTree | None = found[0] if based else None
        self.stored = found[1:] if based else found
        self.merged = self.network.variables(tensors_of(result))

    @property
    def all_names(self) -> list[str]:
        """The base first, if there is one."""
        return self.names if self.base is None else ["base", *self.names]

    @property
    def all_stored(self) -> list[PyTree]:
        """Likewise."""
        return self.stored if self.base is None else [self.base, *self.stored]

    @functools.cached_property
    def all_aligned(self) -> list[PyTree]:
        """Likewise, in the units of the first; as they are where the recipe does not align."""
        return self.all_stored if self.recipe.align is None else self.blocks.aligned(self.all_stored, self.advance)

    @property
    def aligned(self) -> list[PyTree]:
        """The models in the units of the first."""
        return self.all_aligned[len(self.all_aligned) - len(self.stored) :]

    def aligned_models(self) -> dict[str, StoredModel]:
        """The same as models in memory, by name."""
        like = self.blocks.members.models[0]
        arrays = {x: self.network.tensors(jax.device_get(v), like) for x, v in zip(self.names, self.aligned, strict=True)}
        return {name: HeldModel(name, tensors, {}) for name, tensors in arrays.items()}

    @functools.cached_property
    def average(self) -> PyTree:
        """The plain mean of the models as they are merged, running statistics too."""
        return mean_of(self.aligned)

    @functools.cached_property
    def tasks(self) -> Tasks | None:
        """What the recipe learns from; None for one that does not."""
        return None if self.recipe.learn is None else self.blocks.tasks(self.recipe.learn)

    def examples(self, path: Path) -> Examples:
        """Read examples. Raises ValueError for those that the network does not take."""
        joined = self.blocks.vocabulary
        tokenizer = joined.tokenizer.content if joined else self.plan.reference.folder
        found = read_examples(Named(path=str(path)), self.network.config, tokenizer)
        check_takes(self.network, self.stored[0], found)
        return found

    def held_out(self) -> Examples | None:
        """Those that the recipe measures on, of all tasks, or aligns by; None for a recipe without, or of unlike tasks."""
        align = self.recipe.align
        if self.tasks is None and align is not None and align.data is not None:
            return self.blocks.examples(align.data, ("align", "data"))
        try:
            return None if self.tasks is None else joined_examples(list(self.tasks.measured.values()))
        except ValueError:
            return None

    def learned_from(self, examples: Examples) -> int:
        """How many of the examples are among those that the recipe learns from."""
        trained = () if self.tasks is None else self.tasks.train
        return sum(common(examples, x) for x in trained if x.inputs.shape[1:] == examples.inputs.shape[1:])

    def aligns_by(self, examples: Examples) -> bool:
        """Whether the recipe aligns by these examples, and learns from none."""
        align = self.recipe.align
        return self.tasks is None and align is not None and align.data is not None and align.data.path == examples.name

    def judges(self, examples: Examples) -> bool:
        """Whether the examples have labels of what the networks predict."""
        return not is_headless(self.network.config) and has_labels(self.network.apply, self.stored[0], examples)

    def estimating(self, examples: Examples) -> list[tuple]:
        """The batches that statistics of BatchNorm are estimated from: those of the recipe, which learns from them."""
        found = examples.batches(RESET)[: MOST + 1] if self.tasks is None else self.tasks.mixed(RESET, MOST + 1)
        return whole(found)[:MOST]

    def reset(self, variables: PyTree, examples: Examples) -> PyTree:
        """With statistics of BatchNorm that are its own, where it has any."""
        if self.network.train_apply is None:
            return variables
        return reset_statistics(self.network.train_apply, variables, self.estimating(examples))


def _without_blocks(planned: Planned, architecture: str | None) -> Blocks:
    """The networks of a recipe that neither aligns nor learns, or whose examples are gone."""
    recipe, plan = planned.recipe.model_copy(update={"learn": None, "align": None}), planned.plan
    members, joined = members_of(recipe, plan, "models"), planned.vocabulary
    given = None if architecture is None else Network(name=architecture)
    config = changed_config(plan, joined.old_rows, joined.rows) if joined else None
    return Blocks(recipe, plan, members, architecture_of(given, plan.reference, members.models[0], config), joined)


def evaluation(networks: Networks, examples: Examples, *, held_out: bool) -> dict[str, Any]:
    """Every model, the averages and the result on examples with labels, which the recipe holds out or does not."""

    def all_of_them() -> Iterator[tuple[str, PyTree]]:
        if networks.base is not None:
            yield "base", networks.base
        yield from zip(networks.names, networks.stored, strict=True)
        if networks.recipe.align is not None:
            yield UNALIGNED, networks.reset(mean_of(networks.stored), examples)
        yield AVERAGE, networks.reset(networks.average, examples)
        yield RESULT, networks.merged
        if networks.network.train_apply is not None and networks.tasks is None:
            yield ANEW, networks.reset(networks.merged, examples)

    def each() -> Iterator[tuple[str, Any]]:
        for name, variables in all_of_them():
            networks.advance("evaluating", name)
            yield name, judged(networks.network.apply, variables, examples, BATCH)

    rows = rows_of(each(), RESULT)
    return {
        "data": examples.name,
        "examples": len(examples.inputs),
        "predictions": int(np.size(examples.filled)),
        "held_out": held_out,
        "aligned_by": networks.aligns_by(examples),
        "learned_from": 0 if held_out else networks.learned_from(examples),
        "statistics": networks.network.train_apply is not None,
        "models": networks.names,
        "rows": rows,
    }


def alignment(networks: Networks, examples: Examples | None) -> dict[str, Any]:
    """What the alignment of the recipe brought, as `npmerge align` tells it."""
    examples = None if examples is None else some(examples)
    network, data = networks.network, None if examples is None else Data(Path(examples.name), "", examples)
    sample = _sample(networks, examples)
    networks.advance("checking that the function is preserved")
    graph = trace(network.apply, networks.all_stored[0], sample[:2])
    before, after = networks.all_stored, networks.all_aligned
    verified = verify(network.apply, graph, before[0], sample, key=jax.random.key(0))
    labelled = data is not None and networks.judges(data.examples)
    measured = Measured(
        verified,
        [output_change(network, x, y, sample) for x, y in zip(before[1:], after[1:], strict=True)],
        Change(*([squared_distance(models[0], x) for x in models[1:]] for models in (before, after))),
        _correlations(networks, graph, data),
        Change(_paths(networks, before, data), _paths(networks, after, data)) if labelled and data else None,
    )
    rows = [row_of(name, k, measured) for k, name in enumerate(networks.all_names[1:])]
    method = networks.recipe.align.method  # type: ignore[union-attr]
    told = {"method": method, "reference": networks.all_names[0], "verify": verified, "networks": rows}
    measured_on = (
        {"data": None, "examples": 0} if examples is None else {"data": examples.name, "examples": len(examples.inputs)}
    )
    return told | measured_on


def _sample(networks: Networks, examples: Examples | None) -> np.ndarray:
    if examples is not None or networks.network.config is None:
        return examples.inputs[:SAMPLE]  # type: ignore[union-attr]  # networks of users are not aligned without
    return sample_of(networks.network.config, None, 0)


def _correlations(networks: Networks, graph: Graph, data: Data | None) -> Change[dict[str, np.ndarray]] | None:
    if data is None or len(data.inputs) < 2 or not graph.taps:
        return None
    networks.advance("matched correlation")
    return Change(
        *(correlations(networks.network, graph, x, data, lambda _: None) for x in (networks.all_stored, networks.all_aligned))
    )


def _paths(networks: Networks, models: list[PyTree], data: Data) -> list[LossPath]:
    networks.advance("barriers")
    return [path_to(networks.network, (models[0], x), data, POINTS, lambda: None) for x in models[1:]]


def some(examples: Examples) -> Examples:
    """All of them, or a thousand that are drawn at random, in their order."""
    count = len(examples.inputs)
    chosen = np.random.default_rng(0).permutation(count)[:MOST_EXAMPLES]
    return examples if count <= MOST_EXAMPLES else examples.take(np.sort(chosen))


def paths(networks: Networks, examples: Examples) -> dict[str, Any]:
    """Loss on the straight line from the first model to each other one, where the recipe does not align."""
    examples = some(examples)
    data = Data(Path(examples.name), "", examples)
    found = _paths(networks, networks.stored, data)
    rows = [
        {"file": name, "barrier": x.barrier, "path": points_of(x)} for name, x in zip(networks.names[1:], found, strict=True)
    ]
    return {"data": examples.name, "examples": len(examples.inputs), "reference": networks.names[0], "networks": rows}


def statistics(networks: Networks, examples: Examples | None) -> dict[str, Any]:
    """Running statistics of the result estimated from data, against the average of those of the models, layer by layer.

    Returns:
        For each layer the shift of the mean in averaged standard deviations (root mean square over the channels), and the
        ratio of the variances (geometric mean): below 1 where averaging has taken variance away (Jordan et al. 2023, "REPAIR").
    """
    own = networks.merged if networks.tasks is not None or examples is None else networks.reset(networks.merged, examples)
    averaged, found = (
        {path: np.asarray(x, np.float64) for path, x in flatten(v).items() if is_statistic(path)}
        for v in (networks.average, own)
    )
    rows = {}
    for path in averaged:
        layer, _, last = path.rpartition("/")
        if last.endswith("var") and (mean := f"{layer}/{last.removesuffix('var')}mean") in averaged:
            shift = (found[mean] - averaged[mean]) / np.sqrt(averaged[path] + 1e-5)
            ratio = (found[path] + 1e-5) / (averaged[path] + 1e-5)
            rows[layer.removeprefix("batch_stats/")] = {
                "shift": float(np.sqrt(np.mean(shift**2))),
                "ratio": float(np.exp(np.mean(np.log(ratio)))),
            }
    from_ = "what the recipe learns from" if networks.tasks is not None else examples and examples.name
    return {"data": from_, "layers": rows}

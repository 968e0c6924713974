"""What each method makes of two networks, with what it costs."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import npmerge as nm
from alignment import ActivationMatching, WeightMatching, ZipIt, resize
from alignment.budget.costs import Costs
from alignment.graph import PyTree
from alignment.maps import identity
from experiments.learning import Budget
from experiments.pleas.functions import Function, Towards, WithinPart, of_heads, of_its_size
from experiments.pleas.networks import Networks
from experiments.pleas.settings import (
    BY_WEIGHTS,
    CLOSED,
    GRADIENT,
    OWN,
    PARTIAL,
    PLAIN,
    REGMEAN,
    SEQUENTIAL,
    WEIGHTS,
    ZIPPED,
    Settings,
)
from experiments.problem import Trained, batched
from npmerge.least_squares.pleas import PreparedPleas, Sized
from npmerge.models import Config, ResNetCifar, Vgg, example


class Size(NamedTuple):
    """What a merged network costs, as a multiple of one network with the heads of all.

    Attributes:
        flops: operations, of blocks that are not zero by construction.
        dense: all operations.
        parameters: of the blocks that are not zero by construction.
    """

    flops: float
    dense: float
    parameters: float


ONE = Size(1.0, 1.0, 1.0)


class Merged(NamedTuple):
    """A merged network.

    Attributes:
        function: of it.
        size: what it costs.
        chosen: what validation data chose, in words.
    """

    function: Function
    size: Size
    chosen: str = ""


class Merges:
    """The merges of two networks: `make(method, shared, source)`."""

    def __init__(self, settings: Settings, networks: Networks):
        self.settings, self.networks = settings, networks
        self.make, self._ready = functools.cache(self._make), functools.cache(self._prepared)

    def _make(self, method: str, shared: int, source: str) -> Merged:
        """A merge of a size, from the images of a source.

        Args:
            method: its name in the rows.
            shared: stages that ZipIt shares at this size.
            source: of images without labels, and whether units are matched by them.
        """
        if method == ZIPPED:
            return self._zipped(shared, source)
        if method == PLAIN:
            return Merged(self._in_place(nm.Average()(nm.stack_models(self.networks.models)), source), ONE)
        if method == REGMEAN:
            return self._reg_mean(source)
        return self._pleas(method, shared, source)

    # ---------------------------------------------------------------------------------------------------------------- PLeaS

    def _pleas(self, method: str, shared: int, source: str) -> Merged:
        """Partial matching within the operations of ZipIt, and least squares."""
        n, ready, images = self.networks, self._ready(method, source), _images_of(source)
        found = ready.at(self.size(shared).flops)
        parameters = ready.costs.multiple(dict(found.allocation.ratios), by="parameters")
        function = self._function(found)
        if method == GRADIENT:
            function = function.renewed(n.measuring(images))  # not from its small batches
        return Merged(function, Size(found.allocation.cost, found.dense, parameters))

    def _prepared(self, method: str, source: str) -> PreparedPleas:
        """All that does not depend on the size."""
        n, s, images = self.networks, self.settings, _images_of(source)
        fit = {
            CLOSED: nm.LeastSquares(),
            GRADIENT: nm.LeastSquares(method="gradient", steps=s.descent_steps),
            SEQUENTIAL: nm.LeastSquares(sequential=True),
        }.get(method)
        by_weights = method == WEIGHTS or source != OWN  # other images say little of which units are alike
        pleas = nm.Pleas(WeightMatching() if by_weights else ActivationMatching(), fit, heads=n.task.heads)
        batches = n.measuring(images)
        if method == GRADIENT:
            count = n.task.measured // s.descent_batch * s.descent_batch  # whole batches: another size would be compiled anew
            batches = batched(n.images(images).take(np.arange(count)), None, s.descent_batch)
        stats = None if by_weights else n.stats(images)
        given = {"inputs": example(n.config, 1), "train_apply": n.network.train_apply, "stats": stats, "batches": batches}
        return pleas.prepare(n.network.apply, n.graph, n.models, **given)

    def _function(self, found: Sized) -> Function:
        n = self.networks
        if found.headed is not None:
            return of_heads(found.headed._replace(variables=found.variables), apart=True)
        apply, train_apply = (
            resize(f, n.graph, found.variables, found.widths) for f in (n.network.apply, n.network.train_apply)
        )
        return Function(apply, found.variables, train_apply)

    @property
    def costs(self) -> Costs:
        """What a network costs by its widths."""
        return self._ready(PARTIAL, OWN).costs

    def size(self, shared: int) -> Size:
        """What two networks that share so many stages cost."""
        flops, parameters = (self.costs.multiple(self._apart(shared), by=by) for by in ("flops", "parameters"))
        return Size(flops, flops, parameters)

    def _apart(self, shared: int) -> dict[str, float]:
        """The nodes behind the shared stages, all their units separate."""
        return dict.fromkeys(list(self.networks.graph.nodes)[nodes_of(self.networks.config, shared) :], 1.0)

    # ----------------------------------------------------------------------------------------------------------------- others

    def _in_place(self, merged: PyTree, source: str) -> Function:
        """A network of the units of the first, with the heads of both where they keep them."""
        n = self.networks
        if n.task.heads:
            still: dict[str, Any] = {node.name: identity(node.size, node.copies) for node in n.graph.nodes.values()}
            headed = nm.multi_head(n.network.apply, n.graph, n.models, [still] * 2, train_apply=n.network.train_apply)
            return of_heads(headed.sharing(merged), apart=True).renewed(n.measuring(source))
        return Function(n.network.apply, merged, n.network.train_apply).renewed(n.measuring(source))

    def _reg_mean(self, source: str) -> Merged:
        """Regression mean, with the scale that is best on validation data."""
        stack, grams = nm.stack_models(self.networks.models), self.networks.grams
        found = {
            f"scale {scale:g}": self._in_place(nm.RegMean(scale)(stack, stats=grams), source) for scale in self.settings.scales
        }
        best = self._best(found)
        return Merged(found[best], ONE, best)

    def _zipped(self, shared: int, source: str) -> Merged:
        """ZipIt for some stages, the others twice, with the alpha and beta that are best on validation data."""
        found = {"alpha {:g}, beta {:g}".format(*pair): self._zip(pair, shared, source) for pair in self.settings.zipped}
        best = self._best(found)
        return Merged(found[best], self.size(shared), best)

    def _zip(self, pair: tuple[float, float], shared: int, source: str) -> Function:
        n = self.networks
        stop = list(n.graph.nodes)[nodes_of(n.config, shared) - 1]
        alignment = ZipIt(alpha=pair[0], beta=pair[1], stop=stop)
        maps = alignment.maps(alignment.init(n.graph, n.models, stats=n.stats(source)), n.graph)
        headed = nm.multi_head(n.network.apply, n.graph, n.models, maps, train_apply=n.network.train_apply)
        return of_heads(headed, apart=n.task.heads).renewed(n.measuring(source))

    def _best(self, found: Mapping[str, Function]) -> str:
        return min(found, key=lambda name: self.networks.validated(found[name]))


def _images_of(source: str) -> str:
    """Which images are seen: what is matched by weights may see its own."""
    return OWN if source == BY_WEIGHTS else source


def nodes_of(config: Config, shared: int) -> int:
    """How many nodes the first stages of a network have: of a ResNet the channels inside each block and the stream."""
    if isinstance(config, Vgg):
        return sum(len(stage) for stage in config.stages[:shared])
    assert isinstance(config, ResNetCifar)
    return (config.blocks + 1) * shared


def tuned(settings: Settings, networks: Networks, start: Merged) -> tuple[Merged, float]:
    """All weights of a merge learned from the measured images with their labels, and the best of the rates.

    Args:
        settings: steps, batch and rates.
        networks: whose labels are learned.
        start: the merge.
    """
    n = networks
    batches = functools.partial(n.problems[0].batches, n.images(OWN), settings.batch, seed=n.seed)
    return _learned(settings, n, start, WithinPart(n.classes), batches=batches, held_out=n.validation)


def distilled(settings: Settings, networks: Networks, start: Merged) -> tuple[Merged, float]:
    """All weights of a merge learned from what the networks say of the measured images, without labels: see `tuned`."""
    n, inputs = networks, networks.images(OWN).inputs
    batches = functools.partial(nm.shuffled, inputs, n.taught(inputs), settings.batch, seed=n.seed)
    held_out = [(x, n.taught(x)) for x, _ in n.validation]
    return _learned(settings, n, start, nm.PerExample(Towards(n.classes)), batches=batches, held_out=held_out)


def _learned(
    s: Settings, n: Networks, start: Merged, objective: Any, *, batches: Callable[[], Any], held_out: Sequence[tuple]
) -> tuple[Merged, float]:
    function = start.function
    loss = nm.fine_tuning(Trained(of_its_size(function)), objective)
    budget = Budget(s.steps, further=s.further)
    learned = budget.tuned(function.variables, loss, None, batches=batches, held_out=held_out, rates=s.rates)
    ended = function._replace(variables=learned.theta).renewed(n.measuring(OWN))
    return start._replace(function=ended), learned.rate

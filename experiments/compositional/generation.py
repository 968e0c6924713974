"""Generation as a grid: a flow makes images of a category in a style, and a classifier of real images says what they are."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import npmerge as nm
from alignment.graph import PyTree
from experiments.compositional.case import Case
from experiments.compositional.cells import Cells, HeldIn, Part, joined
from experiments.compositional.flows import Adapted, Flow, SquaredErrors, TwoAnswers, adapters, noised, sampled, squares
from experiments.compositional.grid import Cell, Grid
from experiments.compositional.images import Pool, split
from experiments.compositional.methods import Operator
from experiments.compositional.networks import Scores, moved, scores_of
from experiments.compositional.settings import Task
from experiments.data.domains import resized
from experiments.together import Change, Kept, Regime, side_by_side, train_together
from npmerge import cost
from npmerge.lora import stack_adapters
from npmerge.memory import bytes_of
from npmerge.models import Mlp, build
from npmerge.operations import operations


def generation_cells(task: Task, pool: Pool, seed: int) -> tuple[Cells, tuple[Part, Part]]:
    """Images of each category in each style; and images of all cells and the base's style that the classifier learns from.

    Test parts are real images, for the classifier alone.

    Args:
        task: whose grid it is.
        pool: the images.
        seed: of the held-in cells and of the division.
    """
    side = task.side
    if pool.images.shape[1] != side:
        pool = pool._replace(images=2 * resized((pool.images + 1) / 2, side) - 1)
    grid = Grid(pool.categories, tuple(name for name in pool.styles if name != task.base_domain))
    parts, domains, limits = split(pool, task.sizes, seed), (*grid.domains, task.base_domain), task.sizes.limits

    def of(part: Pool, cell: Cell, draw: int, most: int) -> Part:
        styled = part.of_domain(domains[cell.domain])
        places = np.random.default_rng(draw).permutation(np.flatnonzero(styled.labels == cell.category))
        return part_of(styled.take(places)).first(most)

    held_in = {
        cell: HeldIn(*(of(part, cell, seed, most) for part, most in zip(parts[:3], limits, strict=True)))
        for cell in grid.held_in(seed)
    }
    sides, most = (parts.train, parts.validation), (task.sizes.base, task.sizes.base // 20)
    base, judged = (base_part(part, task.base_domain, count, seed) for part, count in zip(sides, most, strict=True))
    test, home = ({cell: of(parts.test, cell, 0, task.sizes.test) for cell in cells} for cells in (grid.cells, grid.home))
    return Cells(grid, held_in, test, base, judged, home, pool.found), (part_of(parts.train), part_of(parts.validation))


def part_of(pool: Pool) -> Part:
    """Images with the category and the style that are asked for; targets are both."""
    asked = {"category": pool.labels.astype(np.int32), "domain": pool.domains.astype(np.int32)}
    return Part({"x": pool.images.astype(np.float32), **asked}, np.stack(list(asked.values()), -1))


def base_part(pool: Pool, domain: str, most: int, seed: int) -> Part:
    """What the base learns: images of its domain with their category, and those of all domains without one; half of either.

    So it knows every domain; that it is asked for no category is a row of the table behind the categories.
    """
    every = part_of(pool.take(np.random.default_rng([seed, 11]).permutation(len(pool.labels))[: most // 2]))
    unasked = {**every.inputs, "category": np.full(len(every), len(pool.categories), np.int32)}
    return joined([part_of(pool.of_domain(domain)).filled(len(every)), Part(unasked, every.targets)])


class Generated(Case):
    """A task whose networks make images.

    Args:
        task: what it is of.
        cells: the data.
        seed: of the networks.
        folder: where trained networks are kept.
        real: images of everything that the classifier learns from, and those by which its moment is chosen.
    """

    operator: ClassVar[Operator] = "gram"
    available: ClassVar[tuple[Any, ...]] = (nm.DiagonalFisher(), nm.InputGram(), nm.Examples())
    """Fisher information is that of a normal distribution around the velocity."""

    classified: ClassVar[bool] = False

    def __init__(self, task: Task, cells: Cells, seed: int, folder: Path, real: tuple[Part, Part]):
        super().__init__(task, cells, seed, folder)
        shape = cells.base.inputs["x"].shape[1:]
        categories, domains = len(cells.grid.categories), 1 + len(cells.grid.domains)
        self.config = Flow(categories + 1, domains, shape[0], shape[-1], task.width, task.layers)
        self.velocity, self.examples = build(self.config).apply, real
        self.judge_network = Mlp(int(np.prod(shape)), (4 * task.width,) * 2, categories + domains)
        self.answers = TwoAnswers(build(self.judge_network).apply, categories)
        self.wanted = {cell: part.targets[0] for cell, part in {**cells.test, **cells.home}.items()}

    def prepare(self) -> None:
        """The classifier, too."""
        super().prepare()
        _ = self.classifier

    @property
    def change(self) -> Change:
        """Noise and times are drawn anew."""
        return noised

    @functools.cached_property
    def classifier(self) -> PyTree:
        """What judges images: trained on real ones of all categories in all styles."""

        def train() -> Kept:
            train, validation = (side_by_side([({"x": part.inputs["x"]}, part.targets)]) for part in self.examples)
            start = build(self.judge_network, seed=self.seed).variables
            regime = self.task.classifier
            return train_together(start, self.answers, train, validation, regime, seed=self.seed, change=moved)

        return self.kept("classifier", train)[0]

    @property
    def apply(self) -> Callable[[PyTree, PyTree], Array]:
        """The velocity."""
        return self.velocity

    @property
    def loss(self) -> SquaredErrors:
        """That of the velocity."""
        return SquaredErrors(self.velocity)

    @property
    def objective(self) -> nm.Objective:
        """The same."""
        return nm.PerExample(squares)

    def initial(self) -> PyTree:
        """By the seed."""
        return build(self.config, seed=self.seed).variables

    def pair(self, part: Part) -> tuple[PyTree, Any]:
        """At times and with noise that stay as they are wherever they are not drawn anew."""
        rng, x = np.random.default_rng(self.seed), part.inputs["x"]
        noise, t = rng.normal(size=x.shape).astype(np.float32), rng.random(len(x), np.float32)
        return {**part.inputs, "noise": noise, "t": t}, x - noise

    @functools.cached_property
    def adapted(self) -> Adapted:
        """The loss of adapters: one object, so that it is compiled once."""
        return Adapted(self.loss, self.base)

    def fine_tuned(self, parts: Sequence[tuple[Part, Part]], regime: Regime, seed: int) -> Kept:
        """Adapters of low rank, with the base in them."""
        train, validation = (side_by_side([self.pair(x) for x in side]) for side in zip(*parts, strict=True))
        start = adapters(self.base, self.task.rank, seed)
        found = train_together(start, self.adapted, train, validation, regime, seed=seed, change=self.change)
        return found._replace(networks=stack_adapters(found.each, self.base).whole().params)

    # -------------------------------------------------------------------------------------------------------------- judging

    def validated(self, variables: PyTree) -> Scores:
        """Of images made out of other noise than those of tests."""
        return self.scores(variables, self.held_in, 1)

    def tested(self, variables: PyTree) -> Scores:
        """Of images made in all cells, and in the base's domain."""
        return self.scores(variables, (*self.cells.grid.cells, *self.cells.grid.home), 0)

    def scores(self, variables: PyTree, cells: Sequence[Cell], draw: int) -> Scores:
        """What the classifier says of the images that a network makes for some cells."""
        hits, losses = map(np.asarray, self.judged(variables, cells, draw))
        return scores_of(dict.fromkeys(cells, self.task.samples), hits, losses)

    def judged(self, variables: PyTree, cells: Sequence[Cell], draw: int) -> tuple[Array, Array]:
        """For each cell and image, (cells, samples), whether the classifier takes it for what was asked for, and its loss."""
        samples, steps, some = self.task.samples, self.task.sampling, len(self.held_in)
        found = []
        for k in range(0, len(cells), some):  # as many as there are categories, so that held-in and all cells share a program
            targets = jnp.asarray(np.repeat([self.wanted[cell] for cell in cells[k : k + some]], samples, axis=0))
            key = jax.random.fold_in(jax.random.key(draw), k)
            noise = jax.random.normal(key, (len(targets), *self.config.input_shape))
            images = sampled(self.velocity, variables, noise, targets[:, 0], targets[:, 1], steps=steps)
            each = answered(self.answers, self.classifier, {"x": images}, targets)
            found.append(tuple(x.reshape(-1, samples) for x in each))
        right, losses = (jnp.concatenate(x) for x in zip(*found, strict=True))
        return right, losses

    def judging(self) -> Callable[[PyTree], Any]:
        """Of all held-in cells."""
        return lambda variables: self.judged(variables, self.held_in, 1)

    def real(self) -> Scores:
        """What the classifier says of real images for tests, cell by cell."""
        whole, counts = joined(list(self.cells.test.values())), {cell: len(x) for cell, x in self.cells.test.items()}
        found = answered(self.answers, self.classifier, {"x": whole.inputs["x"]}, whole.targets)
        ends = np.cumsum(list(counts.values()))[:-1]
        return scores_of(counts, *(np.split(np.asarray(x), ends) for x in found))

    # ----------------------------------------------------------------------------------------------------------- statistics

    def statistics(
        self, models: Sequence[PyTree], batches: Sequence[tuple[PyTree, Any]], kinds: Sequence[Any]
    ) -> Mapping[type, Any]:
        """Fisher information by squared gradients of each example's squared error: there are no classes to draw."""
        others = [kind for kind in kinds if not isinstance(kind, nm.DiagonalFisher)]
        found = dict(super().statistics(models, batches, others)) if others else {}
        if len(others) < len(kinds):
            each = [fisher(self.loss, model, *batch) for model, batch in zip(models, batches, strict=True)]
            found[nm.DiagonalFisher] = jax.tree.map(lambda *x: jnp.stack(x), *each)
        return found

    def cost_of(self, kind: Any) -> cost.Cost:
        """Of Fisher information, what its own program takes."""
        if not isinstance(kind, nm.DiagonalFisher):
            return super().cost_of(kind)
        return fisher_cost(self.loss, self.experts[0], *self.measured[0])


def fisher_cost(loss: SquaredErrors, model: PyTree, inputs: PyTree, targets: Array) -> cost.Cost:
    """What `fisher` takes, its memory as large as all gradients."""
    jax.block_until_ready(fisher(loss, model, inputs, targets))
    began = time.perf_counter()
    found = jax.block_until_ready(fisher(loss, model, inputs, targets))
    seconds = time.perf_counter() - began
    flops = operations(jax.make_jaxpr(functools.partial(fisher, loss))(model, inputs, targets))
    return cost.Cost(flops, bytes_of(found), seconds, bytes_of((model, found, inputs)) + bytes_of(found))


@functools.partial(jax.jit, static_argnums=0)
def fisher(loss: SquaredErrors, model: PyTree, inputs: PyTree, targets: Array) -> PyTree:
    """The mean over the examples of squared gradients, example by example."""

    def one(pair: tuple) -> PyTree:
        alone = jax.tree.map(lambda x: x[None], pair)
        gradient = jax.grad(lambda v: loss(v, *alone)[0])(model)
        return jax.tree.map(jnp.square, gradient)

    count = len(targets)
    add = lambda total, pair: (jax.tree.map(jnp.add, total, one(pair)), None)  # noqa: E731
    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, model), (inputs, targets))
    return jax.tree.map(lambda x: x / count, total)


@functools.partial(jax.jit, static_argnums=0)
def answered(answers: TwoAnswers, classifier: PyTree, images: PyTree, targets: Array) -> tuple[Array, Array]:
    """For each image whether category and style are told as they are wanted, and the loss."""
    return answers.right(classifier, images, targets), answers(classifier, images, targets)

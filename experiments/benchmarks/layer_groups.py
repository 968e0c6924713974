"""Bytes that learning a merge holds, by layer groups and of the whole at once: `python -m experiments.benchmarks.layer_groups`.

Two networks near one with random weights, on the host. What counts is the most that JAX's live arrays hold at any step, and
what `predicted_bytes` says of a step with all that XLA needs on its way. Errors are those of the outputs on data held out.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer

import npmerge as nm
from alignment.graph import PyTree
from alignment.layer_groups.cut_places import cut_between
from experiments.benchmarks.steps import NP_MERGE, parameters
from npmerge.fitting.memory import predicted_bytes
from npmerge.layer_groups.choice import Learning
from npmerge.layer_groups.loss import Reconstruction
from npmerge.memory import bytes_of
from npmerge.models import Gpt2, abstract, build
from npmerge.reports.tables import markdown_table
from npmerge.sharding import AsGiven
from npmerge.version import __version__

ADAM = optax.adam(0.03)
SIZE = Gpt2(vocabulary=8192, width=512, layers=12, heads=8, hidden=2048, length=64)
QUICK = Gpt2(vocabulary=64, width=16, layers=3, heads=2, hidden=32, length=8)
LAYERS = r"blocks/(\d+)/"
NOISE = 0.25
"""What tells the two networks apart, as a share of the deviation of each tensor."""

WHOLE = "the whole at once"


@dataclass(frozen=True)
class Row:
    """One way of learning the merge.

    Attributes:
        way: in words.
        groups: into which the network is cut.
        held: bytes, the most that live arrays hold at a step.
        predicted: bytes of the largest step.
        error: ||f - t||^2 / ||t||^2 of the outputs f on held-out data, t the mean of the models'.
    """

    way: str
    groups: int
    held: int
    predicted: int
    error: float


class Watch:
    """The most bytes that live arrays have held beyond those of the start."""

    def __init__(self) -> None:
        self.before, self.most = _live(), 0

    def __call__(self, *_: Any) -> None:
        """Look."""
        self.most = max(self.most, _live() - self.before)


def _live() -> int:
    return sum(x.nbytes for x in jax.live_arrays())


class Problem:
    """Two networks on the host and tokens for them."""

    def __init__(self, config: Gpt2, examples: int, steps: int):
        self.config, self.steps, self.apply = config, steps, build(config).apply
        start, rng = jax.device_get(build(config).variables), np.random.default_rng(1)

        def noisy(x: np.ndarray) -> np.ndarray:
            return x + NOISE * x.std() * rng.standard_normal(x.shape, np.float32)

        self.models = [jax.tree.map(noisy, start) for _ in range(2)]
        tokens = np.random.default_rng(0).integers(0, config.vocabulary, (3 * examples, config.length)).astype(np.int32)
        self.batches = [(tokens[k * examples : (k + 1) * examples], None) for k in range(2)]
        self.held_out = tokens[2 * examples :]

    def error(self, merged: PyTree) -> float:
        """Of the outputs, on held-out data."""
        run = jax.jit(self.apply)
        outputs = [np.asarray(run(network, self.held_out), np.float64) for network in (*self.models, merged)]
        target = (outputs[0] + outputs[1]) / 2
        return float(np.square(outputs[2] - target).sum() / np.square(target).sum())

    def average(self) -> Row:
        """No learning."""
        mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *self.models)
        return Row("the average, not learned", 0, 0, 0, self.error(mean))

    def whole(self) -> Row:
        """By `fit`, to make what the models make."""
        watch = Watch()
        stack = nm.stack_models(self.models)
        loss = nm.weight_space(NP_MERGE, self._numbered, Reconstruction())
        batches = [(x, {0: (t := self._target(stack, x), np.float32(np.square(t).mean()))}) for x, _ in self.batches]
        result = nm.fit(
            jax.device_get(NP_MERGE.init(stack)), loss, stack, batches, ADAM, steps=self.steps, every=1, progress=watch
        )
        predicted = predicted_bytes(loss, ADAM, result.theta, stack, batches[0], plan=False).total
        merged = jax.device_get(jax.jit(NP_MERGE.apply)(result.theta, stack))
        return Row(WHOLE, 1, watch.most, predicted, self.error(merged))

    def streamed(self, way: str, **options: Any) -> Row:
        """By `fit_layerwise`."""
        watch = Watch()
        result = nm.fit_layerwise(
            NP_MERGE, self.apply, self.models, self.batches, ADAM, steps=self.steps, every=1, progress=watch, **options
        )
        groups = len(result.groups)
        predicted = options.get("max_bytes") or self._predicted()
        return Row(way, groups, watch.most, predicted, self.error(result.variables))

    def _numbered(self, variables: PyTree, x: Any) -> Any:
        """The outputs as a group of layers gives them."""
        return {0: self.apply(variables, x)}

    def _target(self, stack: nm.Stack, x: np.ndarray) -> np.ndarray:
        made = [np.asarray(jax.jit(self.apply)(model, x), np.float32) for model in stack.models()]
        return (made[0] + made[1]) / 2

    def _predicted(self) -> int:
        """Of the largest group of one layer each."""
        shapes = abstract(self.config).variables
        inputs = jax.ShapeDtypeStruct(self.batches[0][0].shape, jnp.int32)
        cuts = cut_between(self.apply, shapes, inputs, LAYERS)
        learning = Learning(NP_MERGE, ADAM, 2, False, AsGiven(), 1, inputs)
        return max(learning.memory(cuts, k).total for k in range(len(cuts.behind) + 1))


def rows(config: Gpt2, examples: int, steps: int) -> list[Row]:
    """All ways, on the same models and batches."""
    problem = Problem(config, examples, steps)
    whole = problem.whole()
    return [
        problem.average(),
        whole,
        problem.streamed("a group for each block", groups=LAYERS),
        problem.streamed("groups that fit into a quarter of that", max_bytes=whole.predicted // 4),
        problem.streamed("a group for each block, teacher-forced", groups=LAYERS, sequential=False),
    ]


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("experiments/results/benchmarks/layer_groups"),
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: to see that it runs.")] = False,
) -> None:
    """Learn the merge in every way and write the table."""
    config, examples, steps = (QUICK, 2, 2) if quick else (SIZE, 2, 4)
    found = rows(config, examples, steps)
    count = parameters(config)
    header = ("learned", "groups", "MB held", "MB of a step, predicted", "error of held-out outputs")
    table = [(r.way, str(r.groups), f"{r.held / 1e6:.1f}", f"{r.predicted / 1e6:.1f}", f"{r.error:.4f}") for r in found]
    size = bytes_of(abstract(config).variables)
    lines = ["# Layer groups: what learning a merge holds", "", *markdown_table(header, table), ""]
    lines += [
        f"Two GPT-2 networks of {count / 1e6:.1f} M parameters, {size / 1e6:.0f} MB each, {config.layers} blocks, of random "
        f"weights, apart by noise of {NOISE} of their deviation; {steps} steps a group on {2 * examples} sequences of "
        f"{config.length} tokens, Adam. Held is the most of JAX's live arrays at any step. The error is that of the outputs "
        "against the mean of both models', relative.",
        "",
        f"`python -m experiments.benchmarks.layer_groups{' --quick' if quick else ''}`, npmerge {__version__}, jax "
        f"{jax.__version__}, {jax.devices()[0].device_kind}.",
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "rows.json").write_text(json.dumps([asdict(r) for r in found], indent=1) + "\n", encoding="utf-8")
    typer.echo("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)

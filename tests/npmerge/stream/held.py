"""Tensors in memory as kernels see them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from npmerge.recipe.parameters import METHODS
from npmerge.recipe.plan import Source, Step
from npmerge.stream.blocks import Block, Merged
from npmerge.stream.kernels import kernel_of

NAME = "layers.3.mlp.weight"
SEED = 5


@dataclass
class Held:
    """A tensor in memory, read in blocks of a length, in any order."""

    step: Step
    models: list[np.ndarray]
    base: np.ndarray | None
    length: int = 2**20
    order: int = 1
    threads: int = 1

    @property
    def size(self) -> int:
        return self.models[0].size

    def blocks(self) -> list[Block]:
        return [self._block(k, k + self.length) for k in range(0, max(self.size, 1), self.length)]

    def _block(self, start: int, end: int) -> Block:
        base = None if self.base is None else self.base.reshape(-1)[start:end]
        return Block(tuple(x.reshape(-1)[start:end] for x in self.models), base, start)

    def each(self, function):
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(function, self.blocks()[:: self.order]))[:: self.order]

    def whole(self) -> Block:
        return self._block(0, self.size)


def tensors(shape, dtype=np.float32, count=3, seed=0) -> tuple[list[np.ndarray], np.ndarray]:
    """Fine-tuned models that share a direction, and their base."""
    rng = np.random.default_rng(seed)
    base, shared = rng.normal(size=(2, *shape))
    models = [base + 0.3 * shared + rng.normal(0, 0.3, shape) for _ in range(count)]
    return [x.astype(dtype) for x in models], base.astype(dtype)


def step_of(method, models, base, out="F32", name=NAME, **given) -> Step:
    """With defaults of the recipes for what is not given."""
    parameters = {p.name: p.default for p in METHODS[method].parameters}
    parameters |= {"lambda" if k == "lambda_" else k: v for k, v in given.items()}
    sources = tuple(Source(k, name) for k in range(len(models)))
    origin = None if base is None else Source(len(models), name)
    return Step(name, models[0].shape, out, "merge", sources, origin, method, parameters)


def run(held: Held, **conventions) -> Merged:
    kernel = kernel_of(held.step, seed=SEED, **conventions)
    surveyed = kernel.survey(held)
    parts = (
        held.each(lambda b: kernel.merge(b, surveyed, held.step))
        if kernel.in_blocks
        else [kernel.merge(held.whole(), surveyed, held.step)]
    )
    values, nonfinite, rounding = zip(*parts, strict=True)
    return Merged(np.concatenate(values), sum(nonfinite), max(rounding))

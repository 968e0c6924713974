"""The networks of one seed: a base, two fine-tunes, and what is merged of them."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import npmerge as nm
from alignment.graph import Graph, PyTree
from experiments.corpora import ALPHABET, mixed
from experiments.language import graph_of, kept
from experiments.learning import Budget, adam
from experiments.text import Text, spread_windows
from experiments.universal_features.settings import (
    BASE,
    CODER,
    CONTROL,
    LUA,
    NP,
    OF_BASE,
    OF_PARENTS,
    PLAYS,
    SLERP,
    STORIES,
    TASK,
    TIES,
    Settings,
    made_with,
)
from npmerge.fitting.fit import Loss
from npmerge.models import Llama, build


class Merged(NamedTuple):
    """A network, and what validation data chose for it: a number of its method, a rate."""

    variables: PyTree
    chosen: str = ""
    rate: float | str = ""
    learned: int = 0


class Networks:
    """One seed.

    Args:
        settings: how much work.
        texts: by name.
        folder: where networks are kept.
        seed: of everything that is drawn.
    """

    def __init__(self, settings: Settings, texts: Mapping[str, Text], folder: Path, seed: int):
        self.settings, self.texts, self.folder, self.seed = settings, texts, folder, seed
        s = settings
        config = Llama(len(ALPHABET), s.width, 1, s.heads, s.kv_heads, s.hidden, s.length, 1e4, 1e-6, tied=False)
        self.network = build(config, seed=seed)
        self.apply, self.objective = self.network.apply, nm.CrossEntropy()
        self.loss = nm.fine_tuning(self.apply, self.objective)
        self.made = made_with(s, texts)
        self.merged = functools.cache(self._merged)

    @functools.cached_property
    def graph(self) -> Graph:
        """Of all of them."""
        return graph_of(self.apply, self.base, self.windows(PLAYS, "test")[0][0])

    @functools.cached_property
    def base(self) -> PyTree:
        """Trained from scratch on English and Python."""
        s = self.settings
        make = functools.partial(self._trained, self.network.variables, OF_BASE, s.base_rate, s.base_steps)
        return kept(self.folder / f"{self.seed}-base.safetensors", self.made, make)

    @functools.cached_property
    def parents(self) -> list[PyTree]:
        """The one fine-tuned to Lua, and the one fine-tuned to plays."""
        s, found = self.settings, []
        for name in (LUA, PLAYS):
            make = functools.partial(self._trained, self.base, (name,), s.tuned_rate, s.tuned_steps)
            found.append(kept(self.folder / f"{self.seed}-{name}.safetensors", self.made, make))
        return found

    def variables(self, name: str) -> PyTree:
        """Of a network by its name in the rows."""
        plain = {BASE: lambda: self.base, CODER: lambda: self.parents[0], STORIES: lambda: self.parents[1]}
        return plain[name]() if name in plain else self.merged(name).variables

    def batches(self, names: Sequence[str], seed: int) -> Iterator[tuple]:
        """Windows of the training parts of texts, as many of each, without end, the same for the same seed."""
        s = self.settings
        return mixed([self.texts[name] for name in names], s.length, s.batch, seed=seed)

    def windows(self, name: str, part: str, count: int | None = None) -> list[tuple]:
        """Windows of a part of a text, as batches."""
        most = count or self.settings.judged
        size = min(64, most)
        return spread_windows(getattr(self.texts[name], part), self.settings.length, size, limit=max(1, most // size))

    def slerp(self, t: float) -> PyTree:
        """Between the fine-tune to Lua, 0, and that to plays, 1."""
        return nm.Slerp(t)(nm.stack_models(self.parents))

    @functools.cached_property
    def validation(self) -> list[tuple]:
        """Of what both fine-tunes have learned, in equal parts."""
        return [batch for name in OF_PARENTS for batch in self.windows(name, "validation")]

    def _trained(self, start: PyTree, names: Sequence[str], rate: float, steps: int) -> PyTree:
        batches = self.batches(names, 100 * self.seed + len(names))
        return nm.fit(start, self.loss, None, batches, adam(rate, steps), steps=steps, every=steps).theta

    # ---------------------------------------------------------------------------------------------------------- merges

    def _merged(self, name: str) -> Merged:
        path = self.folder / f"{self.seed}-{name.replace(': ', '-')}.safetensors"
        found: Merged = self._learned(name, path) if name in (NP, CONTROL) else self._closed(name)
        return found

    def _closed(self, name: str) -> Merged:
        s = self.settings
        if name == SLERP:
            return Merged(self.slerp(s.t), f"t {s.t:g}, published")
        stack = nm.stack_models(self.parents, self.base)
        method = {TASK: nm.TaskArithmetic, TIES: nm.Ties}[name]
        found = {scale: method(scale=scale)(stack) for scale in s.scales}
        best = min(found, key=lambda scale: nm.evaluate(self.apply, found[scale], self.validation).loss)
        return Merged(found[best], f"scale {best:g}")

    def _learned(self, name: str, path: Path) -> Merged:
        """NP Merge from the average, or the average fine-tuned: the same windows, steps and number of rates."""
        s, stack, merge = self.settings, nm.stack_models(self.parents), nm.np_merge()
        loss: Loss
        if name == NP:
            theta, rates = merge.init(stack), s.merge_rates
            loss = nm.weight_space(merge, self.apply, self.objective)
        else:
            theta, rates, loss = nm.Average()(stack), s.weight_rates, self.loss
        rate = np.zeros(())

        def make() -> PyTree:
            batches = functools.partial(self.batches, OF_PARENTS, 40_000 + self.seed)
            found = Budget(s.learning_steps).tuned(
                theta, loss, stack if name == NP else None, batches=batches, held_out=self.validation, rates=rates
            )
            variables = merge.apply(found.theta, stack) if name == NP else found.theta
            return {"network": variables, "rate": rate + found.rate}

        found: dict[str, Any] = kept(path, self.made, make)
        return Merged(found["network"], rate=float(found["rate"]), learned=nm.parameters(theta))

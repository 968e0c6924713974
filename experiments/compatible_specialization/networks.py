"""The networks of one seed: a base, and two experts after each number of steps."""

import functools
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

import npmerge as nm
from alignment.graph import PyTree
from experiments.compatible_specialization.settings import BASE, BOTH, EXPERTS, Settings, made_with
from experiments.corpora import ALPHABET, mixed
from experiments.language import MlpOnly, constant_adamw, kept
from experiments.learning import adam
from experiments.text import Text, random_windows, spread_windows
from npmerge.models import Gpt2, build

BLOCKS = r"blocks/(\d+)/feed_forward/"
"""Leaves that are fine-tuned, and that are an expert of a block."""


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
        self.config = Gpt2(len(ALPHABET), s.width, s.layers, s.heads, 4 * s.width, s.length)
        self.network = build(self.config, seed=seed)
        self.apply, self.objective = self.network.apply, nm.CrossEntropy()
        self.made = made_with(s, texts)

    @functools.cached_property
    def base(self) -> PyTree:
        """Trained from scratch."""
        return kept(self.folder / f"{self.seed}-base.safetensors", self.made, self._trained)

    def experts(self, steps: int) -> list[PyTree]:
        """The base after so many steps on each of the two domains."""
        return [self._expert(name, steps) for name in EXPERTS]

    def both(self, steps: int) -> PyTree:
        """The base after as many steps as both experts have together, each on windows of both domains."""
        return self._expert(BOTH, steps)

    def batches(self, name: str, seed: int) -> Iterator[tuple]:
        """Windows of the training part of a text, without end, the same for the same seed."""
        return random_windows(self.texts[name].train, self.settings.length, self.settings.batch, seed=seed)

    def windows(self, name: str, part: str) -> list[tuple]:
        """Windows of a part of a text, as batches; for validation and test as many as there should be."""
        s = self.settings
        most = s.tested if part == "test" else s.judged
        tokens, size = getattr(self.texts[name], part), min(64, most)
        return spread_windows(tokens, s.length, size, limit=max(1, most // size))

    def _trained(self) -> PyTree:
        s = self.settings
        loss = nm.fine_tuning(self.apply, self.objective)
        batches, optimizer = self.batches(BASE, 10_000 + self.seed), adam(s.base_rate, s.base_steps)
        return nm.fit(self.network.variables, loss, None, batches, optimizer, steps=s.base_steps, every=s.base_steps).theta

    def _expert(self, name: str, steps: int) -> PyTree:
        """One training of which each checkpoint is a moment: where one is missing, it is gone through anew."""
        paths = {count: self.folder / f"{self.seed}-{name}-{count}.safetensors" for count in self.settings.checkpoints}
        if not all(path.exists() for path in paths.values()):
            with tempfile.TemporaryDirectory() as folder:
                for count, path in paths.items():
                    kept(path, self.made, functools.partial(self._fine_tuned, name, count, folder))
        return kept(paths[steps], self.made, dict)

    def _fine_tuned(self, name: str, steps: int, folder: str) -> PyTree:
        """Goes on from the checkpoint before."""
        s, count = self.settings, 2 * steps if name == BOTH else steps
        domains, seed = [self.texts[x] for x in EXPERTS], 20_000 + self.seed
        batches = mixed(domains, s.length, s.batch, seed=seed) if name == BOTH else self.batches(name, seed)
        loss, given = nm.fine_tuning(MlpOnly(self.apply), self.objective), (batches, constant_adamw(s.expert_rate))
        return nm.fit(self.base, loss, None, *given, steps=count, every=count, checkpoints=folder).theta


def parts(texts: Mapping[str, Text]) -> dict[str, int]:
    """How many characters each text has for training."""
    return {name: int(np.size(text.train)) for name, text in texts.items()}

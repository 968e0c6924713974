"""The networks that are looked into: two that were published or trained here, and what is made of them."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import npmerge as nm
from alignment import ActivationMatching, transport
from alignment.graph import PyTree
from alignment.maps import Maps
from experiments.data import Images, labelled
from experiments.landscape.settings import CONTROL, LEARNED, PERMUTED, PLAIN, PLAIN_OF_B, RENEWED, UNTRAINED, A, B, Settings
from experiments.learning import Budget
from experiments.parents import kept
from experiments.problem import Problem
from experiments.run import check_settings
from experiments.strangers.merging import Merging
from experiments.strangers.networks import FOLDER, Strangers, load
from experiments.strangers.ways import CONTROL as FINE_TUNED
from experiments.strangers.ways import LEARNED as PER_PARAMETER
from experiments.strangers.ways import WAYS
from npmerge import checkpoint
from npmerge.models import build

COUNT = 2


def source(settings: Settings, data: Images, seed: int, out: Path, published: Path = FOLDER) -> Strangers:
    """Two published networks; or two that are trained here and kept in the folder `parents`. Others for each seed."""
    if settings.pairs:
        return load(settings.pairs[seed % len(settings.pairs)], published)
    p = Problem(settings.task, data, seed)
    paths = [out / "parents" / f"{seed}-{k}.safetensors" for k in range(COUNT)]
    trained = [kept(p, p.images.train, path, seed=1000 * seed + k, order=k) for k, path in enumerate(paths)]
    models = [p.renewed(network) for network in trained]
    names = tuple(f"{settings.task.network} {k + 1}" for k in range(COUNT))
    return Strangers(names, p.config, p.network, models, p.graph, 0.0)


class Networks:
    """Parents and merges by name. What is learned is kept in the folder `merges`.

    Args:
        settings: how much work.
        strangers: the parents.
        data: whose training images merges see.
        seed: of which images those are, and of their order.
        folder: of the results.
    """

    def __init__(self, settings: Settings, strangers: Strangers, data: Images, seed: int, folder: Path):
        self.settings, self.strangers, self.seed, self.folder = settings, strangers, seed, folder
        order = labelled(data.train.labels, min(settings.images, len(data.train.labels)), seed=seed)
        self.merging = Merging(strangers, data.train.take(order), settings.measured, seed, lambda said: None)
        self.rates: dict[str, float] = {}
        self.made_with = {"networks": list(strangers.names), "images": settings.images, "steps": settings.steps}
        self.made_with |= {"batch": settings.batch, "measured": settings.measured, "data": data.name}

    @functools.cache  # noqa: B019 (networks live as long as their rows)
    def of(self, name: str) -> PyTree:
        """The variables of a network."""
        merging, stack = self.merging, nm.stack_models(self.strangers.models)
        made: dict[str, Callable[[], PyTree]] = {
            A: lambda: self.strangers.models[0],
            B: lambda: merging.matched.models()[1],
            RENEWED[A]: lambda: merging.renewed(self.strangers.models[0]),
            RENEWED[B]: lambda: merging.renewed(self.strangers.models[1]),
            PLAIN: lambda: merging.renewed(nm.Average()(stack)),
            PLAIN_OF_B: lambda: transport(self.strangers.graph, self._to_a(), self.of(PLAIN)),
            PERMUTED: lambda: merging.renewed(nm.Average()(merging.matched)),
            LEARNED: lambda: self._learned(LEARNED, PER_PARAMETER, self.settings.merge_rates),
            CONTROL: lambda: self._learned(CONTROL, FINE_TUNED, self.settings.control_rates),
            UNTRAINED: lambda: merging.renewed(build(self.strangers.config, seed=self.seed).variables),
        }
        return made[name]()

    def _to_a(self) -> Maps:
        """From B's units to A's, as B is matched."""
        matching, s = ActivationMatching(), self.strangers
        return matching.maps(matching.init(s.graph, s.models, stats=self.merging.stats), s.graph)[1]

    def _learned(self, name: str, way: str, rates: tuple[float, ...]) -> PyTree:
        path = self.folder / "merges" / f"{self.seed}-{'merge' if name == LEARNED else 'control'}.safetensors"
        made: dict[str, Any] = self.made_with | {"rates": list(rates)}
        if not path.exists():
            found = self.merging.learned(
                WAYS[way], Budget(self.settings.steps, further=self.settings.further), self.settings.batch, rates
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.save_network(path, self.strangers.config, found.network, {"rate": found.rate, "settings": made})
        record = checkpoint.load_record(path)
        check_settings(record.get("settings", {}), made, path)
        self.rates[name] = record["rate"]
        return checkpoint.load_network(path)[1]

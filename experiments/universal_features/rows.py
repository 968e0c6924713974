"""The rows of one seed: networks, their autoencoders, the flows of features, and contexts for the page of features."""

import functools
import itertools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import typer

import npmerge as nm
from experiments.language import kept
from experiments.run import Rows
from experiments.universal_features.activations import nothing, patched, units
from experiments.universal_features.contexts import contexts_of
from experiments.universal_features.dictionary import Dictionary, learned
from experiments.universal_features.matching import Match, Measured, matched, measured
from experiments.universal_features.networks import Networks
from experiments.universal_features.settings import (
    AGAIN,
    BASE,
    MERGES,
    NP,
    OF_PARENTS,
    PARENTS,
    SLERP,
    TEXTS,
    Settings,
)

TWICE = (BASE, SLERP, NP)
"""Networks with a second autoencoder: what persists between two of one network is the most that can be expected."""


def edges(merges: Sequence[str]) -> list[tuple[str, str]]:
    """Which features are compared with which."""
    parents = [(parent, merge) for merge in merges for parent in PARENTS]
    twice = [(name, f"{name}, {AGAIN}") for name in TWICE]
    return [(BASE, name) for name in (*PARENTS, *merges)] + parents + twice


def seed_of(seed: int, name: str) -> int:
    """Of the autoencoder of a network: no two begin alike, as the two of one network do not."""
    names = (BASE, *PARENTS, *MERGES, *(f"{twice}, {AGAIN}" for twice in TWICE))
    return 1000 * (names.index(name) + 1) + 2 * seed


SHOWN = (BASE, *PARENTS, SLERP, NP)
"""Networks on the page of features."""


class Files(NamedTuple):
    """The files of rows in a folder."""

    rows: Rows
    slerp: Rows
    dictionaries: Rows
    flows: Rows
    origins: Rows
    contexts: Rows


def files(out: Path, made: Mapping[str, Any]) -> Files:
    """Those of a folder. Raises ValueError for rows that were made with other settings."""
    keys = {
        "rows": ("seed", "network"),
        "slerp": ("seed", "t"),
        "dictionaries": ("seed", "network"),
        "flows": ("seed", "parent", "child"),
        "origins": ("seed", "network"),
        "contexts": ("network", "feature"),
    }
    return Files(*(Rows(out / f"{name}.csv", key, made) for name, key in keys.items()))


class Experiment:
    """One seed."""

    def __init__(self, settings: Settings, networks: Networks, found: Files):
        self.settings, self.networks, self.files = settings, networks, found
        self.seed = {"seed": networks.seed}
        self.of = functools.cache(self._measured)
        self.match = functools.cache(self._match)

    def run(self) -> None:
        """Every row that is not there yet."""
        names = (BASE, *PARENTS, *self.settings.merges)
        for name in names:
            self._add(self.files.rows, {"network": name}, functools.partial(self._network, name))
        for t in self.settings.ts:
            self._add(self.files.slerp, {"t": t}, functools.partial(self._slerp, t))
        for name in (*names, *(f"{name}, {AGAIN}" for name in TWICE)):
            self._add(self.files.dictionaries, {"network": name}, functools.partial(self._dictionary, name))
        for parent, child in edges(self.settings.merges):
            key = {"parent": parent, "child": child}
            self._add(self.files.flows, key, lambda p=parent, c=child: self.match(p, c).counts())
        for name in self.settings.merges:
            self._add(self.files.origins, {"network": name}, functools.partial(self._origins, name))
        self._contexts()

    def _add(self, rows: Rows, key: dict[str, Any], make: Any) -> None:
        if rows.has(**self.seed, **key):
            return
        began = time.perf_counter()
        row = self.seed | key | make()
        rows.add(row | {"seconds": round(time.perf_counter() - began, 2)})
        typer.echo(f"{rows.path.stem}: {', '.join(map(str, [*self.seed.values(), *key.values()]))}", err=True)

    # ------------------------------------------------------------------------------------------------------------- the rows

    def _network(self, name: str) -> dict[str, Any]:
        """Test loss on each text, by short names that the page knows."""
        n = self.networks
        variables = n.variables(name)
        losses = {text: nm.evaluate(n.apply, variables, n.windows(text, "test")).loss for text in TEXTS}
        merged = n.merged(name) if name in MERGES else None
        chosen = ("", "", 0) if merged is None else (merged.chosen, merged.rate, merged.learned)
        both = float(np.mean([losses[text] for text in OF_PARENTS]))
        return losses | {"both": both} | dict(zip(("chosen", "rate", "learned"), chosen, strict=True))

    def _slerp(self, t: float) -> dict[str, Any]:
        n = self.networks
        return {text: nm.evaluate(n.apply, n.slerp(t), n.windows(text, "test")).loss for text in OF_PARENTS}

    def _dictionary(self, name: str) -> dict[str, Any]:
        """How good an autoencoder is, at the tokens that features are compared at."""
        n, plain = self.networks, name.removesuffix(f", {AGAIN}")
        variables, found = n.variables(plain), self.of(name)
        x, d = found.units, found.dictionary
        rest = np.square(x - np.asarray(d(jnp.asarray(x)))).sum() / np.square(x - x.mean(0)).sum()
        losses = [patched(n.apply, n.graph, variables, self.compared, y) for y in (d, nothing(d))]
        loss = nm.evaluate(n.apply, variables, self.compared).loss
        return {
            "features": len(found.fires),
            "alive": int((found.fires >= self.settings.fires).sum()),
            "dead": int((found.fires == 0).sum()),
            "l0": round(float(found.fires.sum() / len(x)), 3),
            "explained": round(float(1 - rest), 5),
            "loss": loss,
            "reconstructed": losses[0],
            "ablated": losses[1],
            "recovered": round(float((losses[1] - losses[0]) / (losses[1] - loss)), 5) if losses[1] > loss else "",
        }

    def _origins(self, name: str) -> dict[str, Any]:
        """Which parents a merge has its features from, and what it keeps of what is in only one of them."""
        from_parents = [self.match(parent, name).known for parent in PARENTS]
        from_base = self.match(BASE, name).known
        both, either = np.logical_and(*from_parents), np.logical_or(*from_parents)
        own: dict[str, int] = {}
        for parent, short in zip(PARENTS, ("plays", "lua"), strict=True):
            new = ~self.match(BASE, parent).known
            own |= {f"own_{short}": int(new.sum()), f"own_{short}_kept": int((new & self.match(parent, name).kept).sum())}
        return {
            "features": len(either),
            "both": int(both.sum()),
            "plays": int((from_parents[0] & ~both).sum()),
            "lua": int((from_parents[1] & ~both).sum()),
            "base": int((from_base & ~either).sum()),
            "neither": int((~from_base & ~either).sum()),
            **own,
        }

    def _contexts(self) -> None:
        """Of the first seed that is run."""
        first = min((row["seed"] for row in self.files.contexts.all), default=self.networks.seed)
        there = Counter(row["network"] for row in self.files.contexts.all)
        complete = {row["network"] for row in self.files.contexts.all if there[row["network"]] == row["of"]}
        for name in (name for name in SHOWN if name not in complete and first == self.networks.seed):
            rows = list(contexts_of(self, name))
            for row in rows:
                if not self.files.contexts.has(network=name, feature=row["feature"]):
                    self.files.contexts.add(self.seed | {"network": name} | row | {"of": len(rows)})

    # -------------------------------------------------------------------------------------------------------- features

    @functools.cached_property
    def compared(self) -> list[tuple]:
        """Test windows, as many of each text: where features are compared."""
        s = self.settings
        count = max(1, s.compared // s.length // len(TEXTS))
        return [batch for text in TEXTS for batch in self.networks.windows(text, "test", count)]

    @functools.cached_property
    def learning(self) -> list[tuple]:
        """Training windows of all texts: what every autoencoder learns from."""
        s = self.settings
        count = s.autoencoder.tokens // (s.length * s.batch)
        return list(itertools.islice(self.networks.batches(TEXTS, 50_000 + self.networks.seed), count))

    def _measured(self, name: str) -> Measured:
        n, plain = self.networks, name.removesuffix(f", {AGAIN}")
        variables = n.variables(plain)
        path = n.folder / f"{n.seed}-features-{name.replace(': ', '-')}.safetensors"

        def make() -> dict[str, Any]:
            x = units(n.apply, n.graph, variables, self.learning)
            return learned(x, self.settings.autoencoder, seed=seed_of(n.seed, name))._asdict()

        found = kept(path, n.made, make)
        return measured(Dictionary(**found), units(n.apply, n.graph, variables, self.compared))

    def _match(self, parent: str, child: str) -> Match:
        s = self.settings
        return matched(self.of(parent), self.of(child), threshold=s.threshold, fires=s.fires)

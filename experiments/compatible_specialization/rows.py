"""The rows of one seed: what there is to do, and doing it."""

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import typer

import npmerge as nm
from alignment.graph import PyTree
from experiments.compatible_specialization.networks import Networks
from experiments.compatible_specialization.settings import (
    AVERAGE,
    BASE,
    BEST,
    BOTH,
    CONTROLS,
    EQUAL_FEATURES,
    EQUAL_OUTPUTS,
    EXPERTS,
    FEATURES,
    KEY,
    MERGED,
    OUTPUTS,
    ROUTED,
    SLERP,
    SWEPT,
    TUNED_BASE,
    Settings,
)
from experiments.compatible_specialization.similarity import similarities
from experiments.compatible_specialization.ways import Sweep, case_of, sweep_of
from experiments.corpora import ALPHABET
from experiments.learning import Budget
from experiments.run import Rows


class Files(NamedTuple):
    """The files of rows in a folder.

    Attributes:
        rows: merges.
        sweeps: shares that were tried.
        cka: of the experts, by block.
        usage: of experts, by block.
        tokens: weights of experts, by block and character.
        home: losses of base and experts on the domains of the experts.
    """

    rows: Rows
    sweeps: Rows
    cka: Rows
    usage: Rows
    tokens: Rows
    home: Rows


def files(out: Path, made: dict[str, Any]) -> Files:
    """Those of a folder. Raises ValueError for rows that were made with other settings."""
    return Files(
        Rows(out / "rows.csv", KEY, made),
        Rows(out / "sweeps.csv", (*KEY, "share"), made),
        Rows(out / "cka.csv", (*KEY[:3], "place", "block"), made),
        Rows(out / "usage.csv", (*KEY, "block"), made),
        Rows(out / "tokens.csv", (*KEY, "block"), made),
        Rows(out / "home.csv", ("seed", "steps", "domain", "network"), made),
    )


class Place(NamedTuple):
    """A target and a moment of fine-tuning: the two experts there, and the data of the target."""

    target: str
    steps: int
    experts: list[PyTree]
    validation: list[tuple]
    test: list[tuple]
    measuring: list[tuple]

    @property
    def key(self) -> dict[str, Any]:
        """In the rows."""
        return {"target": self.target, "steps": self.steps}


class Experiment:
    """One seed."""

    def __init__(self, settings: Settings, networks: Networks, found: Files):
        self.settings, self.networks, self.files = settings, networks, found
        self.seed = {"seed": networks.seed}

    def run(self) -> None:
        """Every row that is not there yet."""
        for place in self.places():
            for way in self.settings.ways:
                key = self.seed | place.key | {"way": way}
                if self.files.rows.has(**key):
                    continue
                began = time.perf_counter()
                row = key | self.measured(place, way)
                self.files.rows.add({"seconds": round(time.perf_counter() - began, 2)} | row)
                typer.echo(f"{', '.join(str(x) for x in key.values())}: loss {row['loss']:.4f}", err=True)
            self._similarity(place)
            self._home(place)

    def places(self) -> Iterator[Place]:
        """Each target at each checkpoint."""
        for steps in self.settings.checkpoints:
            for target in self.settings.targets:
                parts = (self.networks.windows(target, part) for part in ("validation", "test", "train"))
                yield Place(target, steps, self.networks.experts(steps), *parts)

    # ------------------------------------------------------------------------------------------------------------- the rows

    def measured(self, place: Place, way: str) -> dict[str, Any]:
        """The columns of a row."""
        n = self.networks
        if way == TUNED_BASE and (row := self._known(place, way)):
            return row
        if way in (*ROUTED, *MERGED, *CONTROLS):
            return self._learned(place, way)
        if way in (*SWEPT, EQUAL_FEATURES, EQUAL_OUTPUTS):
            return self._shared(place, way)
        if way in (AVERAGE, SLERP):
            merge = nm.Average() if way == AVERAGE else nm.Slerp(0.5)
            return self._row(place, n.apply, merge(nm.stack_models(place.experts)))
        if way == BASE:
            return self._row(place, n.apply, n.base)
        if way == BOTH:
            return self._row(place, n.apply, n.both(place.steps))
        if way == BEST:
            best = min(range(2), key=lambda k: self._loss(place.validation, n.apply, place.experts[k]))
            return self._row(place, n.apply, place.experts[best], chosen=EXPERTS[best])
        return self._row(place, n.apply, place.experts[EXPERTS.index(way.removeprefix("expert: "))])

    def _known(self, place: Place, way: str) -> dict[str, Any] | None:
        """What was measured at another moment of the experts, on which it does not depend, and how long that took."""
        key = self.seed | {"target": place.target, "way": way}
        rows = [row for row in self.files.rows.all if all(row[name] == x for name, x in key.items())]
        return {name: x for name, x in rows[0].items() if name not in KEY} if rows else None

    def _learned(self, place: Place, way: str) -> dict[str, Any]:
        """Learned on the target at each rate, the best on validation data kept."""
        s, n = self.settings, self.networks
        case = case_of(n, way, place.experts, place.measuring[:2])
        rates = s.router_rates if way in ROUTED else s.merge_rates if way in MERGED else s.weight_rates
        batches = functools.partial(n.batches, place.target, 30_000 + n.seed)
        found = Budget(s.learning_steps, further=s.further).tuned(
            case.theta, case.loss, case.stack, batches=batches, held_out=place.validation, rates=rates
        )
        network = case.network(found.theta)
        if way in ROUTED:
            self._usage(place, way, case.apply, network)
            self._tokens(place, way, case.apply, network)
        return self._row(place, case.apply, network, rate=found.rate, learned=case.learned)

    def _shared(self, place: Place, way: str) -> dict[str, Any]:
        """With equal shares, or with those of the lowest loss on validation data."""
        equal = {EQUAL_FEATURES: FEATURES, EQUAL_OUTPUTS: OUTPUTS}
        swept = sweep_of(self.networks, equal.get(way, way), place.experts, place.test[0][0])
        share = 0.5 if way in equal else self._chosen(place, way, swept)
        return self._row(place, swept.apply, swept.at(share), chosen=f"{share:g}")

    def _chosen(self, place: Place, way: str, swept: Sweep) -> float:
        key = self.seed | place.key | {"way": way}
        for share in self.settings.fractions:
            if not self.files.sweeps.has(**key, share=share):
                loss = self._loss(place.validation, swept.apply, swept.at(share))
                self.files.sweeps.add(key | {"share": share, "validation": loss})
        rows = [row for row in self.files.sweeps.all if all(row[name] == value for name, value in key.items())]
        return min(rows, key=lambda row: row["validation"])["share"]

    def _usage(self, place: Place, way: str, apply: Any, variables: PyTree) -> None:
        usage = apply.usage(variables, place.test)
        for k, block in enumerate(usage.blocks):
            key = self.seed | place.key | {"way": way, "block": int(block)}
            if not self.files.usage.has(**key):
                weights = np.round(usage.weights[k], 5).tolist()
                self.files.usage.add(key | {"weights": weights, "entropy": round(float(usage.entropy[k]), 5)})

    def _tokens(self, place: Place, way: str, apply: Any, variables: PyTree) -> None:
        """The weights of experts at each character of a test window, of the first seed that is run, after the most steps."""
        first = min((row["seed"] for row in self.files.tokens.all), default=self.networks.seed)
        if first != self.networks.seed or place.steps != max(self.settings.checkpoints):
            return
        inputs = place.test[0][0][:1]
        for name, weights in apply.weights(variables, inputs).items():
            key = self.seed | place.key | {"way": way, "block": int(name)}
            if not self.files.tokens.has(**key):
                text = "".join(ALPHABET[k] for k in inputs[0])
                self.files.tokens.add(key | {"text": [text], "weights": np.round(np.asarray(weights)[0], 3).tolist()})

    def _home(self, place: Place) -> None:
        """How good the experts are at what they were fine-tuned on, and at what the other was."""
        n = self.networks
        for domain in EXPERTS:
            for name, variables in ((BASE, n.base), *zip(EXPERTS, place.experts, strict=True)):
                key = self.seed | {"steps": place.steps, "domain": domain, "network": name}
                if not self.files.home.has(**key):
                    self.files.home.add(key | {"loss": self._loss(n.windows(domain, "test"), n.apply, variables)})

    def _similarity(self, place: Place) -> None:
        """Between the two experts, on the target."""
        key, size = self.seed | place.key, self.settings.layers
        if sum(all(row[name] == x for name, x in key.items()) for row in self.files.cka.all) < 2 * size:
            halves = [(inputs[half], None) for inputs, _ in place.test for half in (slice(0, 32), slice(32, None))]
            batches = [batch for batch in halves if len(batch[0])]
            for row in similarities(self.networks.apply, place.experts, batches):
                if not self.files.cka.has(**key, place=row["place"], block=row["block"]):
                    self.files.cka.add(key | row)

    def _loss(self, batches: list[tuple], apply: Callable[..., Any], variables: PyTree) -> float:
        return nm.evaluate(apply, variables, batches).loss

    def _row(self, place: Place, apply: Callable[..., Any], variables: PyTree, **columns: Any) -> dict[str, Any]:
        found = nm.evaluate(apply, variables, place.test)
        costs = {"parameters": nm.parameters(variables), "flops": _flops(apply, variables, place.test[0][0])}
        return {"accuracy": found.accuracy, "loss": found.loss, **costs, "chosen": "", "rate": "", "learned": 0, **columns}


_FLOPS: dict[Any, float] = {}


def _flops(apply: Callable[..., Any], variables: PyTree, inputs: np.ndarray) -> float:
    """Operations for one token; a network is the same function for all experts."""
    if apply not in _FLOPS:
        _FLOPS[apply] = round(nm.flops(apply, variables, inputs) / inputs.size, 1)
    return _FLOPS[apply]

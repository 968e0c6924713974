"""The rows of one seed: networks, lines, planes, units, similarities, and what similarity does not say."""

import functools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import npmerge as nm
from alignment import NodeMoments
from alignment.activations.correlation import correlation, deviation
from alignment.base import Alignment
from alignment.graph import PyTree
from experiments.data import Images
from experiments.landscape.networks import Networks
from experiments.landscape.settings import (
    AFTER,
    BEFORE,
    CONTROL,
    ENSEMBLE,
    INSIDE,
    LEARNED,
    LINES,
    PERMUTED,
    PLAIN,
    PLAIN_OF_B,
    RENEWED,
    UNTRAINED,
    A,
    B,
    Settings,
)
from experiments.landscape.similarity import caveats, readout, similarities
from experiments.landscape.slices import grid, loss_of, losses, through
from experiments.landscape.visualise import maximised, responses, shown
from experiments.problem import Trained, alike
from experiments.run import Rows
from experiments.strangers.networks import Strangers

PAIRS = ((A, B), (A, PLAIN), *((parent, merge) for merge in (PERMUTED, LEARNED, CONTROL) for parent in (A, B)), (A, UNTRAINED))
"""The networks that are compared."""

JUDGED = (A, B, *RENEWED.values(), ENSEMBLE, PLAIN, PERMUTED, LEARNED, CONTROL)
"""Those whose accuracy is measured."""


class Asked(NamedTuple):
    """Units of a layer that images are found for, the same in all networks.

    Attributes:
        node: the layer.
        units: of it, in the order of A.
        deviations: of each of them on measured images, by network.
    """

    node: str
    units: np.ndarray
    deviations: dict[str, np.ndarray]


class Files(NamedTuple):
    """The files of rows in a folder."""

    rows: Rows
    lines: Rows
    planes: Rows
    units: Rows
    similarity: Rows
    caveats: Rows


def files(out: Path, made_with: dict[str, Any]) -> Files:
    """Those of a folder. Raises ValueError for rows that were made with other settings."""
    keys = {
        "rows": ("seed", "network"),
        "lines": ("seed", "alignment"),
        "planes": ("seed", "plane"),
        "units": ("seed", "node", "unit", "network"),
        "similarity": ("seed", "one", "other", "node"),
        "caveats": ("seed", "what", "distance"),
    }
    return Files(*(Rows(out / f"{name}.csv", key, made_with) for name, key in keys.items()))


class Experiment:
    """One seed."""

    def __init__(self, settings: Settings, strangers: Strangers, data: Images, seed: int, found: Files):
        self.settings, self.strangers, self.data, self.seed, self.files = settings, strangers, data, seed, found
        self.folder = found.rows.path.parent
        self.networks = Networks(settings, strangers, data, seed, self.folder)
        self.apply, self.graph = strangers.network.apply, strangers.graph

    def run(self, tell: Callable[[str], Any]) -> None:
        """Every row that is not there yet."""
        for part in (self.measured, self.lines, self.planes, self.similarity, self.caveats, self.units):
            began = time.perf_counter()
            for said in part():
                tell(f"seed {self.seed}: {said}, {time.perf_counter() - began:.0f} s")
                began = time.perf_counter()

    # ----------------------------------------------------------------------------------------------------------- the function

    def measured(self) -> Iterator[str]:
        """Accuracy and loss of each network."""
        test = alike(self.data.test, self.settings.tested)
        for name in JUDGED:
            if not self.files.rows.has(seed=self.seed, network=name):
                began = time.perf_counter()
                if name == ENSEMBLE:
                    found = nm.evaluate(nm.LogitEnsemble(self.apply), self.strangers.models, test)
                else:
                    found = nm.evaluate(self.apply, self.networks.of(name), test)
                row = {"seed": self.seed, "network": name, "accuracy": found.accuracy, "loss": found.loss}
                row |= {
                    "parents": list(self.strangers.names),
                    "rate": self.networks.rates.get(name, ""),
                    "seconds": round(time.perf_counter() - began, 1),
                }
                self.files.rows.add(row)
                yield f"{name}: accuracy {found.accuracy:.4f}"

    def lines(self) -> Iterator[str]:
        """Between the parents, with statistics of BatchNorm re-estimated at each point."""
        judged, merging = alike(self.data.test, self.settings.judged), self.networks.merging
        for name, alignment in LINES.items():
            if not self.files.lines.has(seed=self.seed, alignment=name):
                start, end = (self.strangers.models if alignment is None else self._aligned(alignment))[:2]
                points = self.settings.points
                line = nm.path_between(self.apply, start, end, judged, points=points, reset=merging.renewed)
                values = {column: [round(float(x), 4) for x in getattr(line, column)] for column in line._fields}
                barriers = {"barrier": round(line.barrier, 4), "accuracy_barrier": round(line.accuracy_barrier, 4)}
                self.files.lines.add({"seed": self.seed, "alignment": name, **values, **barriers})
                yield f"line, {name}: barrier {line.barrier:.3f}"

    def _aligned(self, alignment: Alignment) -> list[PyTree]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "approximate maps leave running statistics")  # re-estimated on the line
            return self.networks.merging.aligned(alignment).models()

    def planes(self) -> Iterator[str]:
        """Through A, the learned merge, and B before and after alignment."""
        batches, outputs = alike(self.data.test, self.settings.sliced), Trained(self.strangers.network.train_apply)
        for name in (BEFORE, AFTER):
            if not self.files.planes.has(seed=self.seed, plane=name):
                second = self.strangers.models[1] if name == BEFORE else self.networks.of(B)
                plane = through(self.networks.of(A), second, self.networks.of(LEARNED))
                xs, ys = grid(plane, self.settings.side)
                found = losses(plane, xs, ys, outputs, batches)
                at_corners = [round(loss_of(outputs, plane.at(x, y), batches), 4) for x, y in plane.corners]
                middle = round(loss_of(outputs, plane.at(plane.corners[1][0] / 2, 0.0), batches), 4)  # the average of A and B
                corners = [[round(x, 4), round(y, 4)] for x, y in plane.corners]
                axes = {"x": [round(float(x), 4) for x in xs], "y": [round(float(y), 4) for y in ys]}
                losses_at = {"at_corners": at_corners, "at_middle": middle, "loss": found}
                self.files.planes.add({"seed": self.seed, "plane": name, **axes, "corners": corners, **losses_at})
                yield f"plane {name}"

    # -------------------------------------------------------------------------------------------------------- representations

    def similarity(self) -> Iterator[str]:
        """CKA of networks, layer by layer."""
        test = [batch for batch in alike(self.data.test, self.settings.compared, 250) if len(batch[1]) > 3]
        for one, other in PAIRS:
            missing = [n for n in self._layers if not self._compared(one, other, n)]
            if missing:
                found = similarities(self.strangers, self.networks.of(one), self.networks.of(other), test)
                for depth, node in enumerate(self._layers, 1):
                    if node in missing:
                        key = {"seed": self.seed, "one": one, "other": other, "node": node}
                        self.files.similarity.add(key | {"depth": depth, "cka": round(found[node], 4)})
                yield f"CKA of {one} and {other}: {np.mean(list(found.values())):.3f}"

    @functools.cached_property
    def _layers(self) -> list[str]:
        """The nodes as they are computed, a stream of residuals where the last block adds to it."""
        return sorted(self.graph.taps, key=lambda node: self.graph.taps[node].location)

    def _compared(self, one: str, other: str, node: str) -> bool:
        return self.files.similarity.has(seed=self.seed, one=one, other=other, node=node)

    def caveats(self) -> Iterator[str]:
        """What CKA says of features that are moved where no layer reads them."""
        if sum(row["seed"] == self.seed for row in self.files.caveats.all) == 3 * len(self.settings.distances):
            return
        inputs, labels = alike(self.data.test, self.settings.compared, self.settings.compared)[0]
        a, b = (readout(self.strangers, self.networks.of(name), inputs) for name in (A, B))
        for row in caveats(a, b, labels, self.settings.distances):
            if not self.files.caveats.has(seed=self.seed, what=row["what"], distance=row["distance"]):
                self.files.caveats.add({"seed": self.seed, **row})
                yield f"CKA where {row['what']} by {row['distance']:g}: {row['cka']:.3f}"

    # ------------------------------------------------------------------------------------------------------------------ units

    def units(self) -> Iterator[str]:
        """Images that matched units answer to, in a picture for each layer."""
        nodes = [node for node in self._layers if self.graph.nodes[node].size >= self.settings.units]
        places = np.unique(np.linspace(0, len(nodes) - 1, self.settings.layers).round().astype(int))
        for node in (nodes[k] for k in places):
            if sum(row["node"] == node and row["seed"] == self.seed for row in self.files.units.all) < self._grid:
                yield from self._layer(node)

    @property
    def _grid(self) -> int:
        return self.settings.units * len(INSIDE)

    @functools.cached_property
    def _moments(self) -> dict[str, Any]:
        """Of each network beside A, on measured training images."""
        batches = self.networks.merging.unlabelled
        pairs = {name: [self.networks.of(A), self.networks.of(name)] for name in (*INSIDE, PLAIN_OF_B)}
        return {n: nm.collect(self.apply, self.graph, p, batches, [NodeMoments()])[NodeMoments] for n, p in pairs.items()}

    def _layer(self, node: str) -> Iterator[str]:
        """Some units of a layer in all networks: those whose correlation with their match is high, low, and between."""
        matched = np.diagonal(correlation(self._moments[B][node]))
        spread = {name: deviation(moments[node])[1] for name, moments in self._moments.items()}
        living = np.flatnonzero((np.stack(list(spread.values())) > 1e-6).all(0))
        ranked = living[np.argsort(-matched[living])]
        units = ranked[np.linspace(0, len(ranked) - 1, self.settings.units).round().astype(int)]
        asked = Asked(node, units, {name: deviations[units] for name, deviations in spread.items()})
        real = alike(self.data.test, self.settings.compared, self.settings.compared)[0][0]
        found, start = self._images(asked)
        best = {name: self._answers(asked, name, real).max(0) for name in INSIDE}
        for name in INSIDE:
            for row in self._answered(asked, name, found[name], start):
                if not self.files.units.has(**{key: row[key] for key in self.files.units.key}):
                    j = list(units).index(row["unit"])
                    more = {"correlation": matched[row["unit"]], "best_real": best[name][j], "rms_real": _rms(real)}
                    self.files.units.add(row | {column: round(float(x), 4) for column, x in more.items()})
        first = self._answers(asked, A, real).argmax(0)
        told = [best[A], *(np.diagonal(self._answers(asked, name, found[name])) for name in INSIDE)]
        self._picture(node, [real[first], *found.values()], [f"{matched[u]:.2f}" for u in units], told)
        yield f"units of {node}"

    def _answered(self, asked: "Asked", name: str, images: np.ndarray, start: np.ndarray) -> Iterator[dict[str, Any]]:
        """Rows of the images that were found for a network: what all networks answer to them."""
        others = {n: self._answers(asked, PLAIN_OF_B if (name, n) == (B, PLAIN) else n, images) for n in INSIDE}
        before = self._answers(asked, name, start)
        for j, unit in enumerate(asked.units):
            row = {"seed": self.seed, "node": asked.node, "unit": int(unit), "network": name}
            row |= {"start": round(float(before[j, j]), 4), "reached": round(float(others[name][j, j]), 4)}
            row["others"] = [round(float(found[j, j]), 4) for found in others.values()]
            row["chance"] = [round(float(np.delete(found[j], j).mean()), 4) for found in others.values()]
            yield row | {"rms": round(_rms(images[j]), 4)}

    def _images(self, asked: "Asked") -> tuple[dict[str, np.ndarray], np.ndarray]:
        """For each network the images that its units answer to, all from the same noise."""
        ascent, shape = self.settings.ascent, (len(asked.units), *self.data.test.inputs.shape[1:])
        rng = np.random.default_rng(self.seed)
        start = (ascent.noise * rng.normal(size=shape)).astype(np.float32)
        given = {"units": jnp.asarray(asked.units), "start": jnp.asarray(start), "key": jax.random.key(self.seed)}
        found = {}
        for name in INSIDE:
            scaled = jnp.asarray(asked.deviations[name], jnp.float32)
            network = self.networks.of(name)
            climbed = maximised(self.apply, self.graph, asked.node, ascent, network, deviations=scaled, **given)
            found[name] = np.asarray(climbed)
        return found, start

    def _answers(self, asked: "Asked", name: str, images: np.ndarray) -> Float[np.ndarray, "images units"]:
        """What the units of a network answer to images, in their deviations."""
        found = np.asarray(responses(self.apply, self.graph, asked.node, self.networks.of(name), images))
        return found[:, asked.units] / asked.deviations[name]

    def _picture(self, node: str, columns: list[np.ndarray], labels: list[str], told: Sequence[np.ndarray]) -> None:
        """The images as a grid: a row for each unit, a column for each network; below them what the unit answers."""
        from matplotlib.figure import Figure  # slow to import, and needed nowhere else

        names = ("real image (A)", *INSIDE)
        drawing = Figure(figsize=(1.6 * len(names), 1.5 * len(labels) + 0.3), layout="constrained")
        axes = drawing.subplots(len(labels), len(names), squeeze=False)
        for j, label in enumerate(labels):
            for k, images in enumerate(columns):
                axes[j, k].imshow(shown(images[j]), interpolation="nearest")
                axes[j, k].set(xticks=[], yticks=[])
                axes[j, k].set_xlabel(f"{told[k][j]:.1f}", fontsize="x-small", labelpad=1)
                if j == 0:
                    axes[j, k].set_title(names[k].replace("control: ", "control:\n"), fontsize="x-small")
            axes[j, 0].set_ylabel(f"r {label}", fontsize="small")
        drawing.savefig(self.folder / picture(self.seed, node), dpi=110)


def picture(seed: int, node: str) -> str:
    """The name of the file with the images of a layer."""
    return f"units-{seed}-{node.removeprefix('params/').replace('/', '-')}.png"


def _rms(images: np.ndarray) -> float:
    """The root of the mean square of pixels."""
    return float(np.sqrt(np.square(images).mean()))

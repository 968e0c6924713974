"""What `npmerge align` reads: networks of one architecture, and examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.finite import check_finite
from alignment.graph import PyTree, flatten
from npmerge.checkpoint.network import architecture
from npmerge.commands.sources import Source, read_source, sha256
from npmerge.learning.data import Examples, read_examples
from npmerge.models import Config, abstract
from npmerge.objectives import check_labels
from npmerge.recipe import examples as recipe

BATCH = 128
SAMPLE = 16  # examples for the checks of function preservation


def read_networks(paths: Sequence[Path], *, widths: bool = False) -> tuple[Config, list[Source]]:
    """The architecture of the first, and the networks: of that architecture, unless they may have other widths.

    Raises:
        ValueError: fewer than two files, one that cannot be read, another architecture or dtype (which file, and both), a NaN
            or infinity.
    """
    if len(paths) < 2:
        raise ValueError(f"align needs at least two checkpoints, the first is the reference: got {len(paths)}")
    sources = [read_source(path) for path in paths]
    (_check_tasks if widths else _check_architectures)(paths, [source.config for source in sources])
    _check_dtypes(paths, [source.variables for source in sources])
    for source in sources:
        check_finite(source.variables, str(source.path))
    return sources[0].config, sources


@dataclass(frozen=True, eq=False)
class Data:
    """Examples, and their labels if there are any.

    Attributes:
        path: where they were read.
        sha256: of the file.
        examples: that it holds.
    """

    path: Path
    sha256: str
    examples: Examples

    @property
    def inputs(self) -> np.ndarray:
        """Of the dtype that the architecture takes."""
        return self.examples.inputs

    @property
    def labels(self) -> np.ndarray | None:
        """int32; None where the file has none."""
        return self.examples.targets

    def batches(self) -> list[tuple]:
        """All of them, in order; targets that nobody reads where there are no labels."""
        return self.examples.batches(BATCH)

    def even_batches(self) -> list[tuple]:
        """All of them in batches of one size, or one less: statistics of BatchNorm count each alike."""
        parts = np.array_split(np.arange(len(self.inputs)), -(-len(self.inputs) // BATCH))
        return [batch for part in parts for batch in self.examples.take(part).batches(BATCH)]


def read_data(path: Path, config: Config) -> Data:
    """Read `inputs` and, if present, `labels` from an .npz file.

    Raises:
        ValueError: no such file, another format, no `inputs`, a shape or dtype that the architecture does not take, NaN,
            labels that are not one integer for each prediction.
    """
    examples = read_examples(recipe.Data(path=str(path), kind="npz"), config, path.parent)
    if examples.targets is not None:
        network = abstract(config)
        inputs = jax.ShapeDtypeStruct(examples.inputs.shape, config.input_dtype)
        try:
            check_labels(examples.targets, jax.eval_shape(network.apply, network.variables, inputs))
        except ValueError as error:
            raise ValueError(f"{path}: {error}; labels are only for measuring, and may be left out") from None
    return Data(path, sha256(path), examples)


def sample_of(config: Config, data: Data | None, seed: int) -> np.ndarray:
    """A few inputs: the first of the data, or drawn at random."""
    if data is not None:
        return data.inputs[:SAMPLE]
    shape, rng = (SAMPLE, *config.input_shape), np.random.default_rng(seed)
    if config.input_dtype.startswith("int"):
        return rng.integers(config.vocabulary, size=shape).astype(np.int32)  # type: ignore[attr-defined]
    return rng.standard_normal(shape, np.float32)


def _check_architectures(paths: Sequence[Path], configs: Sequence[Config]) -> None:
    different = [(path, _differences(configs[0], config)) for path, config in zip(paths, configs, strict=True)]
    if differing := [f"{path} ({what})" for path, what in different if what]:
        raise ValueError(f"all networks must have the architecture of {paths[0]}: {', '.join(differing)}")


def _check_tasks(paths: Sequence[Path], configs: Sequence[Config]) -> None:
    """Of networks that may have other widths: the same inputs and the same leaves."""
    first, *others = [(c.input_dtype, c.input_shape, flatten(abstract(c).variables).keys()) for c in configs]
    for path, config, (dtype, shape, leaves) in zip(paths[1:], configs[1:], others, strict=True):
        if (dtype, shape) != first[:2]:
            raise ValueError(f"{path} takes {dtype} inputs of shape {shape}, {paths[0]} {first[0]} ones of {first[1]}")
        if odd := sorted(leaves ^ first[2]):
            what = _differences(configs[0], config)
            raise ValueError(f"{path} is of another architecture than {paths[0]} ({what}): only one of them has {odd[0]!r}")


def _differences(first: Config, other: Config) -> str:
    """Between two architectures, in words; of two classes, of which all fields differ, only that."""
    ours, theirs = _described(first), _described(other)
    found = [f"{k} is {v!r}, not {ours.get(k)!r}" for k, v in theirs.items() if ours.get(k) != v]
    return "; ".join(found if type(first) is type(other) else found[:1])


def _described(config: Config) -> dict[str, Any]:
    described = architecture(config)
    return {"the architecture": described["class"], **described["fields"]}


def _check_dtypes(paths: Sequence[Path], networks: Sequence[PyTree]) -> None:
    ours = flatten(networks[0])
    for path, network in zip(paths, networks, strict=True):
        for name, leaf in flatten(network).items():
            if leaf.dtype != ours[name].dtype or not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise ValueError(f"{path} has {leaf.dtype} at {name!r}, {paths[0]} {ours[name].dtype}: expected one float type")

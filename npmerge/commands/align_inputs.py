"""What `npmerge align` reads: networks of one architecture, and examples."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignment.base import check_finite
from alignment.graph import PyTree, flatten
from npmerge.checkpoint import load_network, load_record
from npmerge.checkpoint.network import architecture
from npmerge.learning.data import Examples, read_examples, whole
from npmerge.models import Config, abstract
from npmerge.objectives import check_labels
from npmerge.recipe import examples as recipe

BATCH = 128
SAMPLE = 16  # examples for the checks of function preservation


class Source(NamedTuple):
    """A checkpoint as it was read."""

    path: Path
    sha256: str
    record: dict[str, Any]
    config: Config
    variables: PyTree

    @property
    def named(self) -> dict[str, str]:
        """How records name it."""
        return {"file": self.path.name, "sha256": self.sha256}


def read_networks(paths: Sequence[Path], *, widths: bool = False) -> tuple[Config, list[Source]]:
    """The architecture of the first, and the networks: of that architecture, unless they may have other widths.

    Raises:
        ValueError: fewer than two files, one that cannot be read, another architecture or dtype (which file, and both), a NaN
            or infinity.
    """
    if len(paths) < 2:
        raise ValueError(f"align needs at least two checkpoints, the first is the reference: got {len(paths)}")
    networks = [load_network(path) for path in paths]
    (_check_tasks if widths else _check_architectures)(paths, [config for config, _ in networks])
    _check_dtypes(paths, [variables for _, variables in networks])
    for path, (_, variables) in zip(paths, networks, strict=True):
        check_finite(variables, str(path))
    pairs = zip(paths, networks, strict=True)
    return networks[0][0], [Source(path, sha256(path), load_record(path), *network) for path, network in pairs]


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

    def whole_batches(self) -> list[tuple]:
        """Those from which statistics of BatchNorm are estimated: see `whole`."""
        return whole(self.batches())


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
            raise ValueError(f"{path}: {error}") from None
    return Data(path, sha256(path), examples)


def sample_of(config: Config, data: Data | None, seed: int) -> np.ndarray:
    """A few inputs: the first of the data, or drawn at random."""
    if data is not None:
        return data.inputs[:SAMPLE]
    shape, rng = (SAMPLE, *config.input_shape), np.random.default_rng(seed)
    if config.input_dtype.startswith("int"):
        return rng.integers(config.vocabulary, size=shape).astype(np.int32)  # type: ignore[attr-defined]
    return rng.standard_normal(shape, np.float32)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_architectures(paths: Sequence[Path], configs: Sequence[Config]) -> None:
    ours = _described(configs[0])
    differing = []
    for path, config in zip(paths, configs, strict=True):
        theirs = _described(config)
        if different := [f"{k} is {v!r}, not {ours.get(k)!r}" for k, v in theirs.items() if ours.get(k) != v]:
            kind = different[:1] if type(config) is not type(configs[0]) else different  # then all fields differ
            differing.append(f"{path} ({'; '.join(kind)})")
    if differing:
        raise ValueError(f"all networks must have the architecture of {paths[0]}: {', '.join(differing)}")


def _check_tasks(paths: Sequence[Path], configs: Sequence[Config]) -> None:
    """Of networks that may have other widths: the same inputs and the same leaves."""
    first, *others = [(c.input_dtype, c.input_shape, flatten(abstract(c).variables).keys()) for c in configs]
    for path, (dtype, shape, leaves) in zip(paths[1:], others, strict=True):
        if (dtype, shape) != first[:2]:
            raise ValueError(f"{path} takes {dtype} inputs of shape {shape}, {paths[0]} {first[0]} ones of {first[1]}")
        if odd := sorted(leaves ^ first[2]):
            raise ValueError(f"{path} is of another architecture than {paths[0]}: only one of them has {odd[0]!r}")


def _described(config: Config) -> dict[str, Any]:
    described = architecture(config)
    return {"the architecture": described["class"], **described["fields"]}


def _check_dtypes(paths: Sequence[Path], networks: Sequence[PyTree]) -> None:
    ours = flatten(networks[0])
    for path, network in zip(paths, networks, strict=True):
        for name, leaf in flatten(network).items():
            if leaf.dtype != ours[name].dtype or not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise ValueError(f"{path} has {leaf.dtype} at {name!r}, {paths[0]} {ours[name].dtype}: expected one float type")

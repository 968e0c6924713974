"""What `npmerge align` reads: networks of one architecture, and examples."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.checks import repeated
from alignment.finite import check_finite
from alignment.graph import PyTree, flatten
from npmerge.batches import in_order
from npmerge.checkpoint.network import architecture
from npmerge.commands.sources import Source, read_source, sha256, written_name
from npmerge.learning.data import wrong_kind
from npmerge.models import Config, abstract
from npmerge.objectives import check_labels

BATCH = 128
SAMPLE = 16  # examples for the checks of function preservation


def check_seed(seed: int) -> None:
    """Raise ValueError for a seed that cannot be used."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed must be from 0 to {2**32 - 1}, got {seed}")


def check_points(points: int) -> None:
    """Raise ValueError for a number of points that cannot be used."""
    if points < 2:
        raise ValueError(f"--points must be 2 or more, both ends are among them: got {points}")


def check_names(paths: Sequence[Path]) -> None:
    """Raise ValueError for two checkpoints of one name: those that are written keep it."""
    if twice := repeated(map(written_name, paths)):
        raise ValueError(f"aligned checkpoints keep their names, but more than one is called {twice}")


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
        inputs: of the dtype that the architecture takes.
        labels: int32.
    """

    path: Path
    sha256: str
    inputs: np.ndarray
    labels: np.ndarray | None

    def batches(self) -> list[tuple]:
        """All of them, in order; targets that nobody reads where there are no labels."""
        targets = np.zeros(len(self.inputs), np.int32) if self.labels is None else self.labels
        return in_order(self.inputs, targets, BATCH)

    def whole_batches(self) -> list[tuple]:
        """Without a smaller one at the end, which would count as much as the others in statistics of BatchNorm."""
        batches = self.batches()
        return batches[:-1] if len(batches) > 1 and len(batches[-1][0]) < BATCH else batches


def read_data(path: Path, config: Config) -> Data:
    """Read `inputs` and, if present, `labels` from an .npz file.

    Raises:
        ValueError: no such file, another format, no `inputs`, a shape or dtype that the architecture does not take, NaN,
            labels that are not one integer for each prediction.
    """
    arrays = _read_arrays(path)
    if "inputs" not in arrays:
        raise ValueError(f"{path} has no array 'inputs': got {', '.join(arrays) or 'none'}")
    inputs = _checked_inputs(path, arrays["inputs"], config)
    if "labels" not in arrays:
        return Data(path, sha256(path), inputs, None)
    labels = arrays["labels"]
    network = abstract(config)
    outputs = jax.eval_shape(network.apply, network.variables, jax.ShapeDtypeStruct(inputs.shape, config.input_dtype))
    try:
        check_labels(labels, outputs)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if len(labels) != len(inputs):
        raise ValueError(f"{path} has {len(inputs)} inputs and {len(labels)} labels")
    return Data(path, sha256(path), inputs, labels.astype(np.int32))


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


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not an .npz file of arrays, as numpy.savez writes it: {error}") from None


def _checked_inputs(path: Path, inputs: np.ndarray, config: Config) -> np.ndarray:
    wanted, kind = config.input_shape, np.dtype(config.input_dtype).kind
    tokens = kind == "i"
    fits = inputs.shape[1:] == wanted or (tokens and inputs.ndim == 2 and 0 < inputs.shape[1] <= wanted[0])
    if not fits or not len(inputs):
        shape = ", ".join(f"{'up to ' if tokens else ''}{size}" for size in wanted)
        raise ValueError(f"{path}: inputs must have the shape (examples, {shape}), got {inputs.shape}")
    if inputs.dtype.kind not in {"i": "iu", "f": "f"}[kind]:
        raise ValueError(f"{path}: {wrong_kind(inputs, tokens=tokens)}")
    if tokens and not 0 <= inputs.min() <= inputs.max() < (size := config.vocabulary):  # type: ignore[attr-defined]
        raise ValueError(f"{path}: tokens must be from 0 to {size - 1}, got {inputs.min()} to {inputs.max()}")
    with np.errstate(over="ignore"):
        inputs = inputs.astype(config.input_dtype)
    if bad := np.count_nonzero(~np.isfinite(inputs)):
        raise ValueError(f"{path}: inputs hold {bad} values that are not finite as {inputs.dtype}")
    return inputs

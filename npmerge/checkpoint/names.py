"""Networks of `npmerge.models` from the tensors that users have, by name, and back; the tables: `npmerge/models/names`."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.checks import LISTED, check_kinds, unknown
from alignment.graph import PyTree, flatten
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.formats import open_checkpoint
from npmerge.checkpoint.network import fitted
from npmerge.checkpoint.recognise import Tensors, config_of, without_wrappers
from npmerge.checkpoint.stored import StoredModel
from npmerge.checkpoint.tensors import tensors_of
from npmerge.models import Config, WithWidths, abstract
from npmerge.models.names import NAMED, Name, Names


def load_named(path: Path | str, config: Config | None = None, **given: Any) -> tuple[Config, PyTree]:
    """A network from a file or folder in the names that users have, of any format that is read here.

    Args:
        path: of the checkpoint; a `config.json` beside it is read.
        config: the architecture; None tells it as `config_of` does.
        given: fields of the architecture that the files do not tell.

    Raises:
        CheckpointError: as `config_of` and `from_named` do.
        ValueError: what cannot be opened.

    Example:
        >>> from npmerge.models import Vgg, build
        >>> from safetensors.numpy import save_file
        >>> small = Vgg(stages=((2,),), dense=(), side=4)
        >>> save_file(nm.checkpoint.to_named(small, build(small).variables), "theirs.safetensors")  # or PyTorch's own
        >>> config, variables = nm.checkpoint.load_named("theirs.safetensors")
        >>> config == small, build(config).apply(variables, jnp.ones((1, 4, 4, 3))).shape
        (True, (1, 10))
    """
    model = open_checkpoint(path)
    tensors = tensors_of(model)
    if config is None:
        config = config_of(tensors, model.config, source=str(path), **given)
    try:
        return config, from_named(config, tensors, source=str(path))
    except CheckpointError as error:
        theirs = _recognised(model, tensors, given)
        if theirs is None or theirs == config:
            raise
        raise CheckpointError(path, f"holds {theirs}, not {config}: {str(error).removeprefix(f'{path}: ')}") from None


def _recognised(model: StoredModel, tensors: Tensors, given: Mapping[str, Any]) -> Config | None:
    try:
        return config_of(tensors, model.config, **given)
    except CheckpointError:
        return None


def from_named(config: Config, tensors: Tensors, *, source: str = "tensors") -> PyTree:
    """The variables of a network from the tensors of PyTorch's names and layouts.

    Names may begin with "module." and miss the prefix of the model within; running statistics may lack the counter of batches,
    and tied heads may stand there a second time. What the network has no use for, such as position ids, the causal masks of
    GPT-2 or BERT's pooler where there is no classifier, is left out.

    Args:
        config: the architecture.
        tensors: by name; anything that has a shape, a dtype and becomes a NumPy array. Read one at a time.
        source: what messages call them.

    Returns:
        JAX arrays of float32, whatever the tensors were, in the containers of `build(config).variables`.

    Raises:
        CheckpointError: an architecture without a table; all names that are missing, unexpected or stand there twice, and all
            tensors of another shape or no real numbers, at once; a tied head that differs from the embedding.

    Example:
        >>> from npmerge.models import Vgg, build
        >>> config = Vgg(stages=((2,),), dense=(), classes=1, side=2)
        >>> theirs = {name: np.ones(shape) for name, shape in nm.checkpoint.named_shapes(config).items()}
        >>> variables = nm.checkpoint.from_named(config, theirs)
        >>> build(config).apply(variables, jnp.ones((1, 2, 2, 3)))  # two features of 13, added up, and a bias
        Array([[27.]], dtype=float32)
    """
    names, own = _names(config, source), abstract(config).variables
    shapes = named_shapes(config)
    spelled = _matched(names, tensors, source, lambda row, x: _fault(row, x, shapes[row.theirs]))
    found: dict[str, jax.Array] = {}
    for row in names.rows:
        if not row.ours or row.theirs not in spelled:
            continue
        theirs = np.asarray(tensors[spelled[row.theirs]]).astype(np.float32, copy=False)
        for path, x in zip(row.paths, row.layout.ours(theirs), strict=True):
            if path in found and not np.array_equal(found[path], x, equal_nan=True):
                raise CheckpointError(source, "differs from the tensor that the configuration ties it to", row.theirs)
            found[path] = found.get(path, jnp.array(x))
    return jax.tree.unflatten(jax.tree.structure(own), [found[path] for path in flatten(own)])


def to_named(config: Config, variables: PyTree, *, like: Path | str | Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """The tensors of PyTorch's names and layouts: what `load_state_dict(..., strict=True)` takes.

    Args:
        config: the architecture.
        variables: of the network.
        like: a checkpoint, or its names, to be written in its spelling and order and no others, such as with "module." or
            without a tied head; names that hold nothing of the network are left out. None is the order of PyTorch's
            `state_dict` with everything in it; counters of batches are 0.

    Returns:
        Contiguous arrays of the variables' dtypes.

    Raises:
        CheckpointError: an architecture without a table; names in `like` that are missing, unexpected or stand there twice.
        ValueError: variables that are not the architecture's own (all paths and both shapes).

    Example:
        >>> from npmerge.models import Vgg, build
        >>> config = Vgg(stages=((2,),), dense=(), classes=1, side=2)
        >>> variables = build(config).variables
        >>> theirs = nm.checkpoint.to_named(config, variables)
        >>> variables["params"]["stages"][0][0]["conv"]["kernel"].shape, theirs["features.0.weight"].shape
        ((3, 3, 3, 2), (2, 3, 3, 3))
    """
    check_kinds("to_named takes (config, variables)", (config, Config), (variables, object))
    leaves, names = flatten(fitted(config, variables, "variables")), _names(config, "variables")
    rows = {row.theirs: row for row in names.rows}
    spelled = {theirs: theirs for theirs in rows}
    if like is not None:
        wanted = open_checkpoint(like).entries if isinstance(like, Path | str) else like
        found = _matched(names, dict.fromkeys(wanted), "like", lambda row, x: None)
        spelled = {theirs: spelling for theirs, spelling in found.items() if theirs in rows}
    return {spelling: np.asarray(_theirs(rows[theirs], leaves), order="C") for theirs, spelling in spelled.items()}


def named_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The names of an architecture's tensors in PyTorch's order, with the shapes that they have there.

    Raises:
        CheckpointError: an architecture without a table.

    Example:
        >>> from npmerge.models import Vgg
        >>> for name, shape in nm.checkpoint.named_shapes(Vgg(stages=((8,),), dense=(), side=8)).items():
        ...     print(name, shape)
        features.0.weight (8, 3, 3, 3)
        features.0.bias (8,)
        classifier.0.weight (10, 128)
        classifier.0.bias (10,)
    """
    blanks = {path: np.broadcast_to(np.uint8(0), x.shape) for path, x in flatten(abstract(config).variables).items()}
    return {row.theirs: _theirs(row, blanks).shape for row in _names(config, "named_shapes").rows}


def paths_of(config: Config, tensors: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """For each name of a tensor, in whatever spelling, its paths in the network; none where that has no use for it.

    Raises:
        CheckpointError: as `from_named` does for names.
    """
    names = _names(config, "tensors")
    rows = {row.theirs: row for row in names.rows}
    spelled = _matched(names, dict.fromkeys(tensors), "tensors", lambda row, x: None)
    found = {
        spelling: rows[theirs].paths if rows[theirs].ours else () for theirs, spelling in spelled.items() if theirs in rows
    }
    return {name: found.get(name, ()) for name in tensors}


def _names(config: Config, source: str) -> Names:
    plain = config.config if isinstance(config, WithWidths) else config
    for known in NAMED:
        if type(plain) is known.config:
            return known.names(plain)
    raise CheckpointError(source, unknown("architecture", type(plain).__name__, [x.config.__name__ for x in NAMED]))


def _matched(names: Names, tensors: Tensors, source: str, fault: Callable[[Name, Any], str | None]) -> dict[str, str]:
    """Which of the names stands for each of the table, in the order given. Raises CheckpointError with all faults."""
    rows = {row.theirs: row for row in names.rows}
    spelled: dict[str, str] = {}
    faults: dict[str, list[str]] = {"missing": [], "unexpected": [], "there twice": []}
    for name in tensors:
        plain = _plain(names, name)
        if plain not in rows:
            if not any(re.fullmatch(pattern, plain) for pattern in names.ignored):
                faults["unexpected"].append(name)
        elif plain in spelled:
            faults["there twice"].append(f"{spelled[plain]} and {name}")
        else:
            spelled[plain] = name
    faults["missing"] = [row.theirs for row in names.rows if row.theirs not in spelled and not row.optional]
    wrong = (fault(rows[plain], tensors[name]) for plain, name in spelled.items())
    faults["of another shape or kind"] = [x for x in wrong if x]
    if any(faults.values()):
        raise CheckpointError(source, "; ".join(f"{what}: {_listed(x)}" for what, x in faults.items() if x))
    return spelled


def _plain(names: Names, name: str) -> str:
    name = without_wrappers(name)
    for pattern, replacement in names.spellings:
        name = re.sub(pattern, replacement, name)
    return name


def _listed(found: list[str]) -> str:
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return ", ".join(found[:LISTED]) + more


def _fault(row: Name, x: Any, expected: tuple[int, ...]) -> str | None:
    """What is wrong with a tensor, if anything is."""
    got = tuple(np.shape(x))
    if got != expected:
        return f"{row.theirs} (got {got}, expected {expected})"
    if row.ours and not jnp.issubdtype(x.dtype, jnp.floating):
        return f"{row.theirs} (got {x.dtype}, expected real numbers)"
    return None


def _theirs(row: Name, leaves: Mapping[str, Any]) -> np.ndarray:
    return row.layout.theirs([np.asarray(leaves[path]) for path in row.paths]) if row.ours else np.zeros((), np.int64)

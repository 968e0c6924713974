"""Networks of `npmerge.models` as files: the configuration that builds them goes into the record."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.checks import unknown
from alignment.graph import PyTree, flatten
from npmerge.checkpoint.safetensors import Record, load, load_record, save

if TYPE_CHECKING:
    from npmerge.models import Config  # brings in flax, which `import npmerge` does without


def save_network(
    path: Path | str, config: "Config", variables: PyTree, record: Record | None = None, *, overwrite: bool = False
) -> None:
    """Write a network together with its configuration, which stands in the record as "architecture".

    Raises:
        ValueError: as `save` does; for a configuration whose class is not in MODELS, and for variables that are not its own
            (all paths and both shapes).

    Example:
        >>> from npmerge.models import Mlp, build
        >>> config = Mlp(inputs=2, hidden=(3,), classes=2)
        >>> nm.checkpoint.save_network("a.safetensors", config, build(config).variables, {"seed": 0})
        >>> nm.checkpoint.load_record("a.safetensors")["architecture"]
        {'class': 'Mlp', 'fields': {'inputs': 2, 'hidden': [3], 'classes': 2}}
    """
    name = type(config).__name__
    if _classes().get(name) is not type(config):
        other = "save writes the variables of networks of your own"
        raise ValueError(f"cannot save {path}: {unknown('architecture', name, _classes())}; {other}")
    fitted(config, variables, str(path))
    save(path, variables, {**(record or {}), "architecture": architecture(config)}, overwrite=overwrite)


def architecture(config: "Config") -> dict[str, Any]:
    """A configuration as it stands in a record: `{"class", "fields"}`, where a field may be another configuration."""
    fields: dict[str, Any] = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    named = {name: architecture(x) if type(x) in _classes().values() else x for name, x in fields.items()}
    return {"class": type(config).__name__, "fields": named}


def load_network(path: Path | str) -> "tuple[Config, PyTree]":
    """The configuration and the variables, as JAX arrays in the containers that `build` makes.

    Raises:
        ValueError: as `load` does; a record without an architecture, an unknown one (the nearest is named), fields that it
            does not have, and tensors that are not its own (all paths and both shapes).

    Example:
        >>> from npmerge.models import Mlp, build
        >>> network = build(Mlp(inputs=2, hidden=(3,), classes=2), seed=7)
        >>> nm.checkpoint.save_network("a.safetensors", Mlp(inputs=2, hidden=(3,), classes=2), network.variables)
        >>> config, variables = nm.checkpoint.load_network("a.safetensors")
        >>> outputs = [build(config).apply(v, jnp.ones((1, 2))) for v in (network.variables, variables)]
        >>> config, bool((outputs[0] == outputs[1]).all())
        (Mlp(inputs=2, hidden=(3,), classes=2), True)
    """
    record = load_record(path)
    if "architecture" not in record:
        own = "load_named tells that of networks in PyTorch's names; networks of your own are aligned by a recipe, with "
        own += "architecture: module:function under align"
        raise ValueError(f"{path} does not say its architecture: save it by npmerge.checkpoint.save_network; {own}")
    config = network_config(path, record["architecture"])
    return config, jax.tree.map(jnp.asarray, fitted(config, load(path), str(path)))


def fitted(config: "Config", variables: PyTree, name: str) -> PyTree:
    """The variables in the containers of the architecture. Raises ValueError with all leaves that do not fit it."""
    from npmerge.models import abstract

    own = abstract(config).variables
    expected, got = flatten(own), flatten(variables)
    wrong = [
        f"{path!r}: got {ours}, expected {theirs}"
        for path in dict.fromkeys([*expected, *got])
        if (ours := _shape(got, path)) != (theirs := _shape(expected, path))
    ]
    if wrong:
        raise ValueError(f"{name} does not fit {config}: {'; '.join(wrong)}")
    return jax.tree.unflatten(jax.tree.structure(own), [got[path] for path in expected])


def _shape(leaves: dict[str, Any], path: str) -> str:
    return str(np.shape(leaves[path])) if path in leaves else "no such leaf"


def network_config(path: Path | str, described: Any) -> "Config":
    """The configuration that `architecture` described. Raises ValueError, with the path, for what is none."""
    from npmerge.models import abstract

    classes = _classes()
    try:
        name, fields = described["class"], {key: _hashable(x) for key, x in described["fields"].items()}
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} has a damaged record: its architecture is {described!r}") from None
    if name not in classes:
        raise ValueError(f"{path}: {unknown('architecture', name, classes)}")
    known = [field.name for field in dataclasses.fields(classes[name])]  # type: ignore[arg-type]
    if foreign := [key for key in fields if key not in known]:
        raise ValueError(f"{path}: {unknown(f'field of {name}', foreign[0], known)}")
    try:
        inner = {key: network_config(path, x) if isinstance(x, dict) else x for key, x in fields.items()}
        config = classes[name](**inner)
        abstract(config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {name} cannot be built from {fields}: {error}") from None
    return config


def _classes() -> "dict[str, type[Config]]":
    from npmerge.models import MODELS

    return {model.__name__: model for model in MODELS}


def _hashable(value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value

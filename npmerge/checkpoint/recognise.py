"""Which architecture of `npmerge.models` users' tensors belong to, by their names, shapes and `config.json`."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from alignment.checks import unknown
from npmerge.checkpoint.errors import CheckpointError
from npmerge.models import Config, abstract
from npmerge.models.names import NAMED, Architecture

Tensors = Mapping[str, Any]
WRAPPED = re.compile(r"^(module\.|_orig_mod\.)+")


def config_of(tensors: Tensors, described: Mapping[str, Any] | None = None, *, source: str = "tensors", **given: Any) -> Config:
    """The architecture that has these tensors.

    Args:
        tensors: by name; only names and shapes are looked at.
        described: the content of `config.json`, if there is one that says its "model_type". What it says counts, and a
            feature that is not supported is an error. Without one, what tensors do not tell has to be given: the heads of
            attention, and for Llama the base of rotary positions and the epsilon of norms.
        source: what messages call the tensors.
        given: fields of the configuration, which count before all else.

    Raises:
        CheckpointError: no known architecture (which are), a field that must be given, one that there is not, and what the
            architecture cannot represent.

    Example:
        >>> tensors = {"features.0.weight": np.zeros((8, 3, 3, 3)), "features.0.bias": np.zeros(8)}
        >>> tensors |= {"classifier.0.weight": np.zeros((10, 128)), "classifier.0.bias": np.zeros(10)}
        >>> nm.checkpoint.config_of(tensors)
        Vgg(stages=((8,),), dense=(), classes=10, side=8, channels=3, norm='none', pooled=None)
    """
    described = described if described and "model_type" in described else {}
    shapes = {without_wrappers(name): tuple(np.shape(x)) for name, x in tensors.items()}
    known = _recognised(shapes, described, source)
    fields = [field.name for field in dataclasses.fields(known.config)]  # type: ignore[arg-type]
    if odd := [name for name in given if name not in fields]:
        raise CheckpointError(source, unknown(f"field of {known.config.__name__}", odd[0], fields))
    missing = [field for field in known.asks if field not in given and not described]
    if missing:
        raise CheckpointError(
            source, f"the tensors of {known.config.__name__} do not tell {', '.join(missing)}: give them, or a config.json"
        )
    try:
        config = known.config(**{**known.fields(shapes, described, given), **given})
        _check_sizes(config, len(shapes))
        abstract(config)
        return config
    except KeyError as error:
        raise CheckpointError(source, f"config.json or the tensors lack {error}") from None
    except (TypeError, ValueError, IndexError, ArithmeticError, AttributeError) as error:
        raise CheckpointError(source, f"does not describe {known.config.__name__}: {error}") from None


def _check_sizes(config: Config, tensors: int) -> None:
    """Before anything is built. Raises ValueError for numbers of a stranger's file that no network has."""
    fields: dict[str, Any] = vars(config)
    strange = [f"{name}={x}" for name, x in fields.items() if isinstance(x, int) and not 0 <= x < 2**31]
    if strange:
        raise ValueError(f"got {', '.join(strange)}, expected sizes of at most 2^31 - 1")
    if fields.get("layers", 0) > tensors:
        raise ValueError(f"{fields['layers']} blocks, but there are {tensors} tensors")


def _recognised(shapes: Mapping[str, Any], described: Mapping[str, Any], source: str) -> Architecture:
    kind = described.get("model_type")
    if kind is not None:
        for known in NAMED:
            if kind in known.types:
                return known
        others = "; recipes take hf as the architecture of others"
        raise CheckpointError(source, unknown("model_type", kind, [x for known in NAMED for x in known.types]) + others)
    for known in NAMED:
        if all(any(re.fullmatch(mark, name) for name in shapes) for mark in known.marks):
            return known
    classes = ", ".join(known.config.__name__ for known in NAMED)
    begin = ", ".join(list(shapes)[:3])
    own = "recipes, evaluate and report take hf, torch:module:function or module:function as the architecture of others"
    if any(name.startswith(("params/", "batch_stats/")) for name in shapes):
        own = "these are paths of variables: npmerge.checkpoint.load_network reads what save_network wrote, load what save did"
    if "inputs" in shapes:
        own = "is this a file of examples rather than a network?"
    raise CheckpointError(source, f"no known architecture has tensors such as {begin}: expected one of {classes}; {own}")


def without_wrappers(name: str) -> str:
    """A name without what DataParallel and torch.compile put in front of it."""
    return WRAPPED.sub("", name)

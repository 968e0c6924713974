"""Which network a recipe's models are: as it says, as our own files say, or as the tensors tell."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from alignment.checks import unknown
from npmerge.checkpoint.network import network_config
from npmerge.checkpoint.recognise import config_of
from npmerge.checkpoint.sharded import ShardedModel
from npmerge.checkpoint.stored import StoredModel
from npmerge.learning.architectures import Architecture
from npmerge.learning.known_networks import Known
from npmerge.learning.members import Tensors
from npmerge.learning.named_values import hashable
from npmerge.learning.torch_modules import is_torch, torch_network
from npmerge.learning.user_code import check_arguments, user_network
from npmerge.models import MODELS, Config
from npmerge.recipe.named import Named

OTHERS = "module:function or torch:module:function"


def architecture_of(
    given: Named | None, reference: StoredModel, tensors: Tensors, config: Mapping[str, Any] | None = None
) -> Architecture:
    """The network of a recipe's models.

    Args:
        given: by the recipe; None to tell it by the reference.
        reference: whose header and `config.json` may describe it.
        tensors: of one of the models.
        config: in the place of that `config.json`, where the merged model has another.

    Raises:
        ValueError: unknown names, arguments that the architecture does not take, and tensors that no known one has.
    """
    if given is not None and is_torch(given):
        return torch_network(given, tensors, reference.config if config is None else config)
    if given is not None and ":" in given.name:
        return user_network(given)
    if given is None or not given.arguments:
        described = _described(reference)
        if described is not None and (given is None or type(described).__name__ == given.name):
            return Known(described, own=True)
    config = reference.config if config is None else config
    own = "params" in {name.split("/")[0] for name in tensors}
    arguments = {} if given is None else {key: hashable(x) for key, x in given.arguments.items()}
    if given is None:
        return Known(config_of(tensors, config, source=reference.name))
    kind = {x.__name__: x for x in MODELS}.get(given.name)
    if kind is None:
        raise ValueError(unknown("architecture", given.name, [*(x.__name__ for x in MODELS), "hf"]) + f", {OTHERS}")
    check_arguments(given.name, arguments, [f.name for f in dataclasses.fields(kind)])  # type: ignore[arg-type]
    if own:
        return Known(kind(**arguments), own=True)
    found = config_of(tensors, config, source=reference.name, **arguments)
    if type(found) is not kind:
        raise ValueError(f"the tensors of {reference.name} are those of {type(found).__name__}, not of {given.name}")
    return Known(found)


def _described(reference: StoredModel) -> Config | None:
    """What the header of a file of ours says."""
    saved = reference.saved if isinstance(reference, ShardedModel) else None
    described = saved["record"].get("architecture") if saved else None
    return None if described is None else network_config(reference.path, described)

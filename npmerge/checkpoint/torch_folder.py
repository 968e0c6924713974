"""The module of transformers that the `config.json` of a folder describes."""

import difflib
from collections.abc import Mapping
from typing import Any

from alignment.checks import first_line
from npmerge.checkpoint.torch_environment import imported, version

INSTALL = 'pip install "npmerge[hf]"'


def transformers_module(config: Mapping[str, Any], name: str | None = None) -> Any:
    """A module with random numbers; nothing is downloaded, and no code of the folder is run.

    Args:
        config: the content of `config.json`.
        name: of a class of transformers; None for the one that the configuration names.

    Raises:
        ValueError: transformers or torch are missing (what to install); no configuration, or one that names no class; a class
            that transformers does not have; a configuration that the class refuses.
    """
    transformers = imported("transformers", INSTALL)
    imported("torch", INSTALL)
    if not config:
        raise ValueError("hf is for folders with a config.json, as save_pretrained writes them: there is none")
    named: list[str] = list(config.get("architectures") or ())
    if name is None and len(named) != 1:
        raise ValueError(
            f"config.json has architectures = {config.get('architectures')!r}: give the class as an argument of hf"
        )
    name = name or named[0]
    kind: Any = getattr(transformers, name, None)
    if not hasattr(kind, "config_class"):
        near = difflib.get_close_matches(name, dir(transformers), n=1)
        nearest = f": the nearest is {near[0]!r}" if near else ""
        raise ValueError(f"transformers {version('transformers')} has no model of the class {name!r}{nearest}")
    try:
        return kind(kind.config_class.from_dict(dict(config)))
    except Exception as error:  # whatever it is that the class raises
        raise ValueError(f"{name} of transformers {version('transformers')} refuses config.json: {first_line(error)}") from None

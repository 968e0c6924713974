"""What stands for a model in a recipe: a path on this machine, or the name of an earlier document."""

import difflib
import os
from collections.abc import Collection
from pathlib import Path

from npmerge.checkpoint.errors import from_hub

NEAREST = 3
"""Names that a message proposes at most."""


WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".th", ".ckpt", ".h5", ".keras", ".msgpack", ".npz", ".onnx")
"""Endings of files that may be a model, or make one of the folder that they are in."""


def check_reference(text: str, names: Collection[str] = (), words: Collection[str] = (), *, folder: Path | None = None) -> None:
    """Check that a model is on this machine, or one of the `names` of other documents. Nothing is opened.

    A path that exists is that path, whatever characters are in it: "+" and "@" have their meaning only where it does not.
    Paths are from the folder in which the command runs. `words` are others that may stand there, which messages name; `folder`
    is that of the recipe, in which a path may lie that was meant from there.

    Raises:
        ValueError: folders that hold no adapter, revisions, GGUF files, names of a hub and paths that do not exist, each with
            what to do.
    """
    if text in names:
        return None
    if text.lower().endswith(".gguf"):
        raise ValueError(f"{text!r} is a GGUF file, which recipes do not take: npmerge convert makes safetensors of it")
    if _exists(text):
        return None
    path, plus, adapter = text.rpartition("+")
    if plus and (_exists(adapter) or _may_be(path)):
        if not Path(adapter, "adapter_config.json").is_file():
            raise ValueError(
                f"{text!r} asks for {path!r} with the adapter {adapter!r}: expected a folder on this machine with "
                "adapter_config.json"
            )
        return check_reference(path, names, words, folder=folder)
    path, at, revision = text.rpartition("@")
    if at and _may_be(path):
        raise ValueError(f"{text!r} asks for the revision {revision!r} of a hub: download it first and give the folder's path")
    if meant := meant_from(folder, text):
        raise ValueError(f"{text!r} is no path from here{meant}")
    if _is_hub_name(text):
        name = text.partition("/")[2]
        how = f"download the model first (hf download {text} --local-dir {name}) and give its path from here"
        raise ValueError(f"{text!r} is no path on this machine: {how}")
    known = [*words, *names]
    near = difflib.get_close_matches(text, [*known, *_beside(text)], n=NEAREST)
    nearest = f"the nearest {'is' if len(near) == 1 else 'are'} {', '.join(map(repr, near))}, " if near else ""
    hub = "" if near else from_hub(text)
    expected = f"expected {', '.join(map(repr, known))} or a path" if known else "expected a path"
    raise ValueError(f"unknown model {text!r}: {nearest}{expected} (no such file or folder: {Path(text).absolute()}){hub}")


def meant_from(folder: Path | None, text: str) -> str:
    """The end of a message on a path that is not there, if it is there as seen from the recipe; else empty."""
    if folder is None or not _exists(str(folder / text)):
        return ""
    return f", where the command runs, but one from the recipe's folder: give {normal(str(folder / text))}"


def normal(text: str) -> str:
    """A reference in one spelling: without a slash at the end and the like."""
    return os.path.normpath(text)


def same(a: str | None, b: str | None) -> bool:
    """Whether two references are spelt alike, apart from a slash at the end and the like."""
    return a is not None and b is not None and normal(a) == normal(b)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long a name, or characters that no name can have
        return False


def _may_be(path: str) -> bool:
    return _exists(path) or _is_hub_name(path)


def _is_hub_name(text: str) -> bool:
    """An owner and a name, and no folder of the owner's name: that is a path with a misspelt end."""
    owner, _, name = text.partition("/")
    return bool(owner.strip(".")) and bool(name) and "/" not in name and not _exists(owner)


def _beside(text: str) -> list[str]:
    """What the folder of the path holds that may be a model."""
    folder = Path(text).parent
    try:
        return [str(path) for path in sorted(folder.iterdir()) if _may_be_model(path)]
    except (OSError, ValueError):
        return []


def _may_be_model(path: Path) -> bool:
    """By the names of files alone; those of Orbax have no ending."""
    if not path.is_dir():
        return path.suffix in WEIGHTS and path.exists()
    try:
        return any(x.suffix in WEIGHTS or x.name in ("_METADATA", "_CHECKPOINT_METADATA") for x in path.iterdir())
    except OSError:
        return False

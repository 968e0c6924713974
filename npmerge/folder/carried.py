"""Files of the reference's folder that go along with its weights: tokenizer, processors, licence, code of the model."""

import shutil
from collections.abc import Callable
from pathlib import Path

from npmerge.reports.folder import OF_MERGES

LARGEST = 2**26  # bytes; tokenizers of a quarter of a million tokens take half of that
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".npz", ".ot", ".tflite")
OWN = {"config.json", "README.md", "npmerge.json", "mergekit_config.yml", "history.json", *OF_MERGES}
"""Files that are written anew, or that are about the model that was."""


def carry(source: Path, target: Path, skip: Callable[[str], bool] = lambda name: False) -> list[str]:
    """Copy what is no weight from one model's folder to another's. Code is copied like any other file and never run.

    Folders one level down are copied if nothing in them is a weight, such as the poolings of sentence transformers.

    Args:
        source: folder of the reference; a single file has nothing that goes along.
        target: folder of the merged model.
        skip: names that are not to be copied.

    Returns:
        A line for each thing that was left behind, other than weights of the model itself.
    """
    left: list[str] = []
    for path in sorted(source.iterdir()) if source.is_dir() else []:
        if path.name.startswith((".", "__")) or path.name in OWN or _is_weight(path) or skip(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            left += _carry_folder(path, target / path.name)
        elif not path.is_file():
            left.append(f"{path.name} was not carried over: it is neither a file nor a folder that lies here")
        elif path.stat().st_size > LARGEST:
            left.append(f"{path.name} was not carried over: it has {path.stat().st_size:,} bytes")
        else:
            shutil.copyfile(path, target / path.name)
    return left


def carried(source: Path) -> set[str]:
    """The names of files that `carry` may copy: not of folders, which may hold more than they did."""
    found = source.iterdir() if source.is_dir() else ()
    return {
        x.name for x in found if x.is_file() and x.name not in OWN and not x.name.startswith((".", "__")) and not _is_weight(x)
    }


def _carry_folder(source: Path, target: Path) -> list[str]:
    inside = sorted(source.rglob("*"))
    files = [path for path in inside if path.is_file()]
    if any(_is_weight(path) for path in files) or sum(path.stat().st_size for path in files) > LARGEST:
        return [f"{source.name}/ was not carried over: it holds weights or more than {LARGEST:,} bytes"]
    if all(path.is_file() and not path.name.startswith(".") for path in inside):
        shutil.copytree(source, target)
        return []
    return [f"{source.name}/ was not carried over: it holds more than plain files"]


def _is_weight(path: Path) -> bool:
    return path.suffix in WEIGHTS or path.name.endswith(".index.json")

"""Small models as folders of Hugging Face: words as tokens, an embedding, two layers and a head."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from npmerge.checkpoint.sharded import open_model
from npmerge.recipe import Recipe, parse_recipe
from npmerge.recipe.plan import Plan, Source, Step

HIDDEN = 3
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def added(token: str, number: int) -> dict[str, Any]:
    return {"id": number, "content": token, **SPECIAL}


def words(tokens: Sequence[str], **more: Any) -> dict[str, Any]:
    """`tokenizer.json` of whole words; the first is for unknown ones."""
    model = {"type": "WordLevel", "vocab": {token: k for k, token in enumerate(tokens)}, "unk_token": tokens[0]}
    return tokenizer(model, added_tokens=[added(tokens[0], 0)], pre_tokenizer={"type": "WhitespaceSplit"}, **more)


def tokenizer(model: Mapping[str, Any], **parts: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0", **empty, "added_tokens": [], **parts, "model": dict(model)}


def tensors(seed: int, rows: int, layers: int = 2, head: bool = True) -> dict[str, np.ndarray]:
    shapes = {EMBEDDING: (rows, HIDDEN), "model.norm.weight": (HIDDEN,)}
    shapes |= {f"model.layers.{k}.mlp.weight": (HIDDEN, HIDDEN) for k in range(layers)}
    shapes |= {HEAD: (rows, HIDDEN)} if head else {}
    draw = np.random.default_rng(seed)
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_model(folder: Path, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None, **files: Any) -> Path:
    """A folder; `files` are written as JSON, or as they are for texts, a double underscore standing for a dot."""
    folder.mkdir(parents=True)
    save_file(dict(arrays), folder / "model.safetensors")
    files = ({"config__json": config} if config is not None else {}) | files
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def of_words(folder: Path, seed: int, tokens: Sequence[str], rows: int | None = None, **files: Any) -> Path:
    """A model that knows these words."""
    rows = len(tokens) if rows is None else rows
    config = {"vocab_size": rows, "num_hidden_layers": 2, "bos_token_id": 1, "torch_dtype": "float32"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": tokens[0]}
    files = {"tokenizer__json": words(tokens), "tokenizer_config__json": settings} | files
    return write_model(folder, tensors(seed, rows), config, **files)


def recipe(text: str, models: Sequence[Path], base: Path | None = None) -> Recipe:
    lines = ["merge_method: linear", "parameters: {weight: 1.0}", *([f"base_model: {base}"] if base else []), "models:"]
    return parse_recipe("\n".join([*lines, *(f"- model: {path}" for path in models), text]))[0]


def copying(*models: Path, dtype: str = "F32", layers: Mapping[int, tuple[int, int]] | None = None) -> Plan:
    """A plan that copies the first model; `layers` takes some from other places: number to model and layer."""
    opened = tuple(open_model(path) for path in models)
    steps = [
        _copy(name, entry.shape, dtype, Source(0, name)) for name, entry in opened[0].entries.items() if ".layers." not in name
    ]
    origins = {k: (0, k) for k in range(2)} if layers is None else layers
    for number, (model, layer) in origins.items():
        source = Source(model, f"model.layers.{layer}.mlp.weight")
        steps.append(_copy(f"model.layers.{number}.mlp.weight", (HIDDEN, HIDDEN), dtype, source))
    return Plan(opened, tuple(steps), seed=7)


def _copy(name: str, shape: tuple[int, ...], dtype: str, source: Source) -> Step:
    return Step(name, shape, dtype, "copy", (source,))

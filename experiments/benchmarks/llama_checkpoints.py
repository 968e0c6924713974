"""Checkpoints to time merges on: a base and its fine-tunes, Llama-shaped, of random bfloat16 weights."""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-shaped network: by default of 468 M parameters.

    Attributes:
        hidden: width of the residual stream, a multiple of 64.
        mlp: width inside an MLP.
        layers: number of them.
        vocabulary: number of tokens.
    """

    hidden: int = 1024
    mlp: int = 4096
    layers: int = 24
    vocabulary: int = 32000

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, (out, in), in the order in which they are stored."""
        h, m = self.hidden, self.mlp
        layer: dict[str, tuple[int, ...]] = {f"self_attn.{x}_proj": (h, h) for x in "qkvo"}
        layer |= {"mlp.gate_proj": (m, h), "mlp.up_proj": (m, h), "mlp.down_proj": (h, m)}
        layer |= {"input_layernorm": (h,), "post_attention_layernorm": (h,)}
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, h)}
        found |= {f"model.layers.{i}.{name}.weight": shape for i in range(self.layers) for name, shape in layer.items()}
        return found | {"model.norm.weight": (h,), "lm_head.weight": (self.vocabulary, h)}


def write_checkpoints(folder: Path, shape: Shape, *, models: int = 3, shards: int = 3) -> None:
    """Write `base` and `m1`, `m2`, ... into `folder`, each a folder as Hugging Face lays it out.

    Weights of the base are N(0, 0.02), those of a fine-tune 0.002 away, so that slerp meets angles and not equal tensors. The
    same numbers in every call. Nothing is written over.

    Raises:
        ValueError: one of them that exists.
    """
    names = ["base", *(f"m{k}" for k in range(1, models + 1))]
    for name in names:
        if (folder / name).exists():
            raise ValueError(f"{folder / name} exists: choose another folder")
        (folder / name).mkdir(parents=True)
        _write_texts(folder / name, shape, shards)
    for number, part in enumerate(_parts(shape.tensors(), shards)):
        files = [(folder / name / _file(number, shards)).open("wb") for name in names]
        _write_part(files, part)
        for file in files:
            file.close()


def _write_part(files: Sequence[IO[bytes]], part: Mapping[str, tuple[int, ...]]) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, shape in part.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    for file in files:
        file.write(struct.pack("<Q", len(text)) + text)
    for name, shape in part.items():
        for file, values in zip(files, _drawn(name, shape, len(files)), strict=True):
            file.write(values.tobytes())


def _drawn(name: str, shape: tuple[int, ...], models: int) -> Iterator[np.ndarray]:
    """The tensor of each model, as bits of bfloat16."""
    rng = np.random.default_rng(list(name.encode()))
    base = rng.standard_normal(shape, np.float32) * np.float32(0.02) + np.float32(len(shape) == 1)
    yield _bfloat16(base)
    for _ in range(models - 1):
        yield _bfloat16(base + rng.standard_normal(shape, np.float32) * np.float32(0.002))


def _bfloat16(x: np.ndarray) -> np.ndarray:
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _parts(tensors: Mapping[str, tuple[int, ...]], shards: int) -> Iterator[dict[str, tuple[int, ...]]]:
    sizes = np.cumsum([np.prod(shape) for shape in tensors.values()])
    of = np.minimum((sizes - 1) * shards // sizes[-1], shards - 1)
    for k in range(shards):
        yield {name: shape for (name, shape), j in zip(tensors.items(), of, strict=True) if j == k}


def _file(number: int, shards: int) -> str:
    return f"model-{number + 1:05d}-of-{shards:05d}.safetensors"


def _write_texts(folder: Path, shape: Shape, shards: int) -> None:
    tensors = shape.tensors()
    files = {name: _file(k, shards) for k, part in enumerate(_parts(tensors, shards)) for name in part}
    total = sum(2 * int(np.prod(s)) for s in tensors.values())
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.hidden // 64,
        "num_key_value_heads": shape.hidden // 64,
        "vocab_size": shape.vocabulary,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    words = {"<unk>": 0} | {f"t{i}": i for i in range(1, shape.vocabulary)}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
    }
    tokenizer |= {"model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}}
    texts = {
        "config.json": config,
        "model.safetensors.index.json": {"metadata": {"total_size": total}, "weight_map": files},
        "tokenizer.json": tokenizer | dict.fromkeys(("truncation", "padding", "post_processor", "decoder")),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"},
    }
    for name, content in texts.items():
        (folder / name).write_text(json.dumps(content))

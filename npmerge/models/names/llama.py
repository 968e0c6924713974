"""Llama, Mistral and Qwen2 in the names of transformers."""

from collections.abc import Mapping
from typing import Any

from npmerge.models.llama import Llama
from npmerge.models.names.table import Architecture, Names, Rows, Shapes, count, embedding, expect, inside, linear, norm, shape

FIRST = embedding("model.embed_tokens", "tokens")
FEED_FORWARD = (
    *linear("mlp.gate_proj", "feed_forward/gate", bias=False),
    *linear("mlp.up_proj", "feed_forward/up", bias=False),
    *linear("mlp.down_proj", "feed_forward/down", bias=False),
)
NORMS = (*norm("input_layernorm", "norm1", bias=False), *norm("post_attention_layernorm", "norm2", bias=False))
NORM = norm("model.norm", "norm", bias=False)
SPELLINGS = ((r"^(?=(embed_tokens|layers|norm)\.)", "model."),)  # without the head
STRETCH = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"model\.rotary_emb\.inv_freq")


def names(config: Llama) -> Names:
    """The table."""
    block = (*_attention(config.bias), *FEED_FORWARD, *NORMS)
    rows = [*FIRST]
    for k in range(config.layers):
        rows += inside(block, f"model.layers.{k}.", f"blocks/{k}/")
    head = embedding("lm_head", "tokens", optional=True) if config.tied else linear("lm_head", "head", bias=False)
    return Names((*rows, *NORM, *head), SPELLINGS, IGNORED)


def _attention(bias: bool) -> Rows:
    return (
        *linear("self_attn.q_proj", "attention/query", bias=bias),
        *linear("self_attn.k_proj", "attention/key", bias=bias),
        *linear("self_attn.v_proj", "attention/value", bias=bias),
        *linear("self_attn.o_proj", "attention/out", bias=False),
    )


def fields(shapes: Shapes, described: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """See `Architecture.fields`."""
    if described:
        return _described(described)
    return {
        "vocabulary": shape(shapes, "embed_tokens.weight")[0],
        "width": shape(shapes, "embed_tokens.weight")[1],
        "layers": count(shapes, r"(?:^|\.)layers\.(\d+)\."),
        "hidden": shape(shapes, "layers.0.mlp.up_proj.weight")[0],
        "bias": any(name.endswith("layers.0.self_attn.q_proj.bias") for name in shapes),
        "tied": "lm_head.weight" not in shapes,
    }


def _described(described: Mapping[str, Any]) -> dict[str, Any]:
    kind, width, heads = described["model_type"], described["hidden_size"], described["num_attention_heads"]
    expect(
        described, hidden_act="silu", attention_bias=False, mlp_bias=False, head_dim=width // heads, use_sliding_window=False
    )
    rope = described.get("rope_parameters") or described.get("rope_scaling") or {}
    stretched = rope.get("rope_type", rope.get("type")) == "llama3"
    expect({} if stretched else {"rope_type": rope.get("rope_type", rope.get("type"))}, rope_type="default")
    return {
        "vocabulary": described["vocab_size"],
        "width": width,
        "layers": described["num_hidden_layers"],
        "heads": heads,
        "kv_heads": described.get("num_key_value_heads") or heads,
        "hidden": described["intermediate_size"],
        "length": described["max_position_embeddings"],
        "theta": rope.get("rope_theta", described.get("rope_theta", 10_000.0)),
        "eps": described.get("rms_norm_eps", 1e-6),
        "bias": kind == "qwen2",
        "tied": described.get("tie_word_embeddings", False),
        "window": described.get("sliding_window") if kind == "mistral" else None,
        "stretch": tuple(rope[key] for key in STRETCH) if stretched else None,
    }


ARCHITECTURE = Architecture(
    Llama,
    names,
    fields,
    (r"(model\.)?embed_tokens\.weight", r"(model\.)?layers\.0\.mlp\.gate_proj\.weight"),
    ("llama", "mistral", "qwen2"),
    ("heads", "kv_heads", "theta", "eps"),
)

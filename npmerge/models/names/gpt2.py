"""GPT-2 in the names of transformers; its dense layers are stored as here, (inputs, outputs)."""

from collections.abc import Mapping
from typing import Any

from npmerge.models.gpt2 import Gpt2
from npmerge.models.names.table import AS_IS, Architecture, Names, Shapes, count, embedding, expect, inside, linear, norm, shape

FIRST = (*embedding("transformer.wte", "tokens"), *embedding("transformer.wpe", "positions"))
BLOCK = (
    *norm("ln_1", "norm1"),
    *linear("attn.c_attn", "attention/qkv", layout=AS_IS),
    *linear("attn.c_proj", "attention/out", layout=AS_IS),
    *norm("ln_2", "norm2"),
    *linear("mlp.c_fc", "feed_forward/up", layout=AS_IS),
    *linear("mlp.c_proj", "feed_forward/down", layout=AS_IS),
)
LAST = (*norm("transformer.ln_f", "norm"), *embedding("lm_head", "tokens", optional=True))
SPELLINGS = ((r"^(?=(wte|wpe|h|ln_f)\.)", "transformer."),)  # without the head
IGNORED = (r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",)  # the causal mask


def names(config: Gpt2) -> Names:
    """The table."""
    rows = [*FIRST]
    for k in range(config.layers):
        rows += inside(BLOCK, f"transformer.h.{k}.", f"blocks/{k}/")
    return Names((*rows, *LAST), SPELLINGS, IGNORED)


def fields(shapes: Shapes, described: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """See `Architecture.fields`."""
    expect(
        described,
        activation_function="gelu_new",
        layer_norm_epsilon=1e-5,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
        tie_word_embeddings=True,
    )
    if described:
        width = described["n_embd"]
        return {
            "vocabulary": described["vocab_size"],
            "width": width,
            "layers": described["n_layer"],
            "heads": described["n_head"],
            "hidden": described.get("n_inner") or 4 * width,
            "length": described["n_positions"],
        }
    return {
        "vocabulary": shape(shapes, "wte.weight")[0],
        "width": shape(shapes, "wte.weight")[1],
        "layers": count(shapes, r"(?:^|\.)h\.(\d+)\."),
        "hidden": shape(shapes, "h.0.mlp.c_fc.weight")[1],
        "length": shape(shapes, "wpe.weight")[0],
    }


ARCHITECTURE = Architecture(Gpt2, names, fields, (r"(transformer\.)?wte\.weight",), ("gpt2",), ("heads",))

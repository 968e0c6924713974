"""BERT and MiniLM in the names of transformers."""

from collections.abc import Mapping
from typing import Any

from npmerge.models.bert import Bert
from npmerge.models.names.table import Architecture, Names, Shapes, count, embedding, expect, inside, linear, norm, shape

EMBEDDINGS = (
    *embedding("embeddings.word_embeddings", "tokens"),
    *embedding("embeddings.position_embeddings", "positions"),
    *embedding("embeddings.token_type_embeddings", "types"),
    *norm("embeddings.LayerNorm", "norm"),
)
BLOCK = (
    *linear("attention.self.query", "attention/query"),
    *linear("attention.self.key", "attention/key"),
    *linear("attention.self.value", "attention/value"),
    *linear("attention.output.dense", "attention/out"),
    *norm("attention.output.LayerNorm", "norm1"),
    *linear("intermediate.dense", "feed_forward/up"),
    *linear("output.dense", "feed_forward/down"),
    *norm("output.LayerNorm", "norm2"),
)
CLASSIFIER = (*linear("bert.pooler.dense", "head/pooler"), *linear("classifier", "head/out"))
SPELLINGS = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))  # the first files of all
FEATURES = (r"^bert\.", "")
CLASSIFIED = (r"^(?=(embeddings|encoder|pooler)\.)", "bert.")
IGNORED = (r"(bert\.)?embeddings\.position_ids", r"cls\..*")
POOLER = (r"pooler\.dense\.(weight|bias)",)


def names(config: Bert) -> Names:
    """The table: of features without pooler (`BertModel(..., add_pooling_layer=False)`), or of a classifier.

    The heads that BERT was trained with are ignored.
    """
    rows = [*EMBEDDINGS]
    for k in range(config.layers):
        rows += inside(BLOCK, f"encoder.layer.{k}.", f"blocks/{k}/")
    if config.classes is None:
        return Names(tuple(rows), (*SPELLINGS, FEATURES), (*IGNORED, *POOLER))
    return Names((*inside(rows, "bert."), *CLASSIFIER), (*SPELLINGS, CLASSIFIED), IGNORED)


def fields(shapes: Shapes, described: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """See `Architecture.fields`."""
    classes = shape(shapes, "classifier.weight")[0] if "classifier.weight" in shapes else None
    if described:
        expect(described, hidden_act="gelu", layer_norm_eps=1e-12, position_embedding_type="absolute", is_decoder=False)
        return {
            "vocabulary": described["vocab_size"],
            "width": described["hidden_size"],
            "layers": described["num_hidden_layers"],
            "heads": described["num_attention_heads"],
            "hidden": described["intermediate_size"],
            "length": described["max_position_embeddings"],
            "classes": classes,
            "types": described.get("type_vocab_size", 2),
            "pad": described.get("pad_token_id") or 0,
        }
    return {
        "vocabulary": shape(shapes, "embeddings.word_embeddings.weight")[0],
        "width": shape(shapes, "embeddings.word_embeddings.weight")[1],
        "layers": count(shapes, r"(?:^|\.)encoder\.layer\.(\d+)\."),
        "hidden": shape(shapes, "encoder.layer.0.intermediate.dense.weight")[0],
        "length": shape(shapes, "embeddings.position_embeddings.weight")[0],
        "classes": classes,
        "types": shape(shapes, "embeddings.token_type_embeddings.weight")[0],
    }


ARCHITECTURE = Architecture(Bert, names, fields, (r"(bert\.)?embeddings\.word_embeddings\.weight",), ("bert",), ("heads",))

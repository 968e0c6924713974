"""The tokenizer's files of the merged model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npmerge.checkpoint.indices import read_object
from npmerge.folder.carried import carry
from npmerge.folder.configs import write_json
from npmerge.folder.templates import FILE as TEMPLATE_FILE
from npmerge.folder.templates import KEY as TEMPLATE_KEY
from npmerge.folder.tokenizers import FILE, Tokenizer
from npmerge.folder.vocabulary import Vocabulary

CONFIG = "tokenizer_config.json"
SENTENCEPIECE = {"tokenizer.model", "spiece.model", "sentencepiece.bpe.model"}
SAME_TOKENS = SENTENCEPIECE | {"vocab.json", "merges.txt", "vocab.txt", "added_tokens.json"}
"""Say again what `tokenizer.json` says."""
OF_TOKENIZER = SAME_TOKENS | {FILE, CONFIG, "special_tokens_map.json", TEMPLATE_FILE, "chat_template.json"}


def write_tokenizer(folder: Path, vocabulary: Vocabulary) -> None:
    """Put the tokenizer of a vocabulary in the place of the one that was carried over.

    Files that no longer say the same are removed: readers have all they need in `tokenizer.json`.
    """
    if vocabulary.folder == vocabulary.reference.path:
        return
    if vocabulary.folder is not None:
        _remove(folder, OF_TOKENIZER)
        carry(vocabulary.folder, folder, lambda name: name not in OF_TOKENIZER)
        return
    _remove(folder, SAME_TOKENS)
    write_json(folder / FILE, vocabulary.tokenizer.content)
    if (folder / CONFIG).is_file():
        config = read_object(folder / CONFIG)
        if "added_tokens_decoder" in config:
            config["added_tokens_decoder"] = _decoder(vocabulary.tokenizer)
        write_json(folder / CONFIG, config)


def write_template(folder: Path, template: str) -> None:
    """Set the chat template where the folder has one, or in the tokenizer's configuration, which every reader looks at."""
    own, config = folder / TEMPLATE_FILE, folder / CONFIG
    if own.is_file() or not config.is_file():
        own.write_text(template, encoding="utf-8")
    if config.is_file():
        content = read_object(config)
        if TEMPLATE_KEY in content or not own.is_file():
            write_json(config, {**content, TEMPLATE_KEY: template})


def moved_tokens(config: Mapping[str, Any], vocabulary: Vocabulary, donor: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose `..._token_id` are the merged model's numbers: the donor's, else those of the same tokens.

    Args:
        config: of the reference, such as `config.json`.
        vocabulary: of the merged model.
        donor: the same configuration of the model whose tokenizer is taken; empty for none.
    """
    tokens = {number: token for token, number in vocabulary.reference.ids.items()}

    def moved(number: Any) -> Any:
        if isinstance(number, list):
            return [moved(one) for one in number]
        return vocabulary.tokenizer.ids.get(tokens.get(number, ""), number)

    return {
        key: donor.get(key, moved(value)) if key.endswith("_token_id") and value is not None else value
        for key, value in config.items()
    }


def _decoder(tokenizer: Tokenizer) -> dict[str, Any]:
    settings = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {str(token["id"]): {key: token[key] for key in settings} for token in tokenizer.added.values()}


def _remove(folder: Path, names: set[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)

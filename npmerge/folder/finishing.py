"""Everything beside the weights, written into the folder of a merged model before it gets its name."""

from pathlib import Path

from npmerge.checkpoint.indices import read_object
from npmerge.checkpoint.partial import RECORD
from npmerge.folder.card import write_card
from npmerge.folder.carried import carry
from npmerge.folder.configs import changed_config, write_json
from npmerge.folder.record import Provenance, record_of
from npmerge.folder.templates import chosen_template
from npmerge.folder.tokenizer_files import moved_tokens, write_template, write_tokenizer
from npmerge.folder.vocabulary import Vocabulary
from npmerge.recipe.plan import Plan
from npmerge.recipe.schema import Recipe

GENERATION = "generation_config.json"


def finish(
    folder: Path,
    plan: Plan,
    recipe: Recipe,
    provenance: Provenance,
    *,
    vocabulary: Vocabulary | None = None,
    name: str = "",
) -> list[str]:
    """Write `config.json`, tokenizer files, model card and `npmerge.json`, and carry over what else the reference has.

    A model without `config.json` has no folder of its own: nothing of what stands beside its file is carried over.

    Args:
        folder: of the merged model, whose weights are written; its name may be a temporary one.
        plan: of the merge.
        recipe: that was planned, for its `chat_template`.
        provenance: the recipe's text, options, and hashes of inputs and outputs.
        vocabulary: of the merged model, where the recipe asks for one.
        name: of the merged model, for its card; the folder's for an empty one.

    Returns:
        What has to be said of it, a line each, such as files that were left behind.
    """
    reference = plan.reference
    notes: list[str] = []
    if reference.config:
        notes += carry(reference.folder, folder)
        _write_configs(folder, plan, vocabulary)
    if vocabulary:
        write_tokenizer(folder, vocabulary)
    if recipe.chat_template:
        notes += _set_template(folder, plan, recipe.chat_template)
    write_card(folder, plan, provenance, name or folder.name, recipe.learn)
    write_json(folder / RECORD, record_of(provenance, plan.seed, plan.mergekit_semantics, libraries=recipe.libraries))
    return notes


def _write_configs(folder: Path, plan: Plan, vocabulary: Vocabulary | None) -> None:
    """`config.json`, and the numbers of tokens in it and in `generation_config.json`."""
    config = changed_config(plan, vocabulary.old_rows if vocabulary else None, vocabulary.rows if vocabulary else None)
    write_json(folder / "config.json", _numbered(config, vocabulary, "config.json"))
    if vocabulary and (folder / GENERATION).is_file():
        write_json(folder / GENERATION, _numbered(read_object(folder / GENERATION), vocabulary, GENERATION))


def _numbered(config: dict, vocabulary: Vocabulary | None, file: str) -> dict:
    if vocabulary is None or vocabulary.folder == vocabulary.reference.path:
        return config
    donor = vocabulary.folder / file if vocabulary.folder else None
    return moved_tokens(config, vocabulary, read_object(donor) if donor and donor.is_file() else {})


def _set_template(folder: Path, plan: Plan, asked: str) -> list[str]:
    template = chosen_template(asked, [model.folder for model in plan.models])
    if template is None:
        return ["chat_template: auto found none in any model"]
    write_template(folder, template)
    return []

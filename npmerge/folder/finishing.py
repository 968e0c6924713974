"""Everything beside the weights, written into the folder of a merged model before it gets its name."""

from pathlib import Path

from npmerge.folder.card import write_card
from npmerge.folder.carried import carry
from npmerge.folder.configs import changed_config, write_json
from npmerge.folder.record import RECORD, Provenance, record_of
from npmerge.recipe.plan import Plan


def finish(folder: Path, plan: Plan, provenance: Provenance, *, name: str = "") -> list[str]:
    """Write `config.json`, tokenizer files, model card and `npmerge.json`, and carry over what else the reference has.

    Args:
        folder: of the merged model, whose weights are written; its name may be a temporary one.
        plan: of the merge.
        provenance: the recipe's text, options, and hashes of inputs and outputs.
        name: of the merged model, for its card; the folder's for an empty one.

    Returns:
        What has to be said of it, a line each: files that were left behind, tokenizers that do not agree.
    """
    notes = carry(plan.models[plan.reference].path, folder)
    if config := changed_config(plan):
        write_json(folder / "config.json", config)
    write_card(folder, plan, provenance.recipe, name or folder.name)
    write_json(folder / RECORD, record_of(provenance, plan.seed, plan.mergekit_semantics))
    return notes

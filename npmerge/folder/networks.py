"""Networks that `npmerge.checkpoint.save` wrote stay such when they are merged by a recipe."""

import json
from collections.abc import Mapping
from typing import Any

from npmerge.checkpoint.sharded import ShardedModel
from npmerge.recipe.plan import Plan


def as_network(plan: Plan, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The header of the reference, by which its tensors become a tree again, with the record of the merge as "merge".

    None if it has no such header, or if the merged model has other tensors.
    """
    reference = plan.models[plan.reference]
    if not isinstance(reference, ShardedModel) or len(reference.files) != 1:
        return None
    (file,) = reference.files.values()
    try:
        header = json.loads(file.metadata.get("npmerge", "{}"))
        if "containers" in header and {step.name for step in plan.steps} == set(reference.entries):
            return {**header, "record": {**header["record"], "merge": record}}
    except (ValueError, TypeError, KeyError):  # of strangers
        pass
    return None

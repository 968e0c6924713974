"""Networks that `npmerge.checkpoint.save` wrote stay such when they are merged by a recipe."""

from collections.abc import Mapping
from typing import Any

from npmerge.checkpoint.sharded import ShardedModel
from npmerge.recipe.plan import Plan


def as_network(plan: Plan, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The header of the reference, by which its tensors become a tree again, with the record of the merge as "merge".

    None if it has no such header, or if the merged model has other tensors.
    """
    reference = plan.reference
    saved = reference.saved if isinstance(reference, ShardedModel) else None
    if saved is None or "containers" not in saved or {step.name for step in plan.steps} != set(reference.entries):
        return None
    return {**saved, "record": {**saved["record"], "merge": record}}

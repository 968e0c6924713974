"""What has to be said of a plan: tensors that are left out, and what the one who wrote the recipe may not expect."""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from alignment.names import is_statistic
from npmerge.checkpoint.stored import Entry
from npmerge.recipe.parameters import METHODS
from npmerge.recipe.plan import Skipped, Step
from npmerge.recipe.schema import Recipe
from npmerge.recipe.targets import Targets

SHOWN = 3
"""Names in one warning; of more only the number is told."""

UNTOLD = ("num_batches_tracked", "position_ids")
"""PyTorch's number of batches that statistics come from, which a network in use never reads, and its count of positions."""

UNFIT = "those of the models do not fit a merged network; learn: {data: FILE, steps: 0} estimates them from examples"
"""What has to be said of running statistics that are merged and not estimated anew."""


def averaged_statistics(steps: Iterable[Step]) -> str:
    """The names of running statistics that are merged, in a few words; empty if there are none."""
    several = [step.name for step in steps if step.action == "merge" and len(step.sources) > 1]
    return _listed([name for name in several if is_statistic(name.replace(".", "/"))])


@dataclass(frozen=True, eq=False)
class Notices:
    """Collected while the steps of a plan are made.

    Attributes:
        recipe: one document.
        targets: of it.
    """

    recipe: Recipe
    targets: Targets
    _used: dict[str, set[str]] = field(default_factory=dict)
    _missing: dict[str, list[str]] = field(default_factory=dict)
    _tied: dict[str, list[str]] = field(default_factory=dict)

    def matched(self, model: str, entry: Entry | None, name: str) -> None:
        """A model has this tensor for the one of that name, or none."""
        if entry is None:
            self._missing.setdefault(model, []).append(name)
        else:
            self._used.setdefault(model, set()).add(entry.name)

    def tied(self, model: str, name: str, table: str) -> None:
        """A model's table of tokens stands for the head of that name."""
        self._tied.setdefault(model, []).append(f"{name} is its {table}")

    def unrelated(self) -> set[str]:
        """Models that have none of the tensors that were asked for."""
        return self._missing.keys() - self._used.keys()

    def other_names(self) -> tuple[str, str] | None:
        """The model that lacks most of the tensors, and in words which, and which it has instead; None if none lacks any."""
        if not self._missing:
            return None
        model, lacking = max(self._missing.items(), key=lambda pair: len(pair[1]))
        own = [name for name in self.targets.models[model].entries if name not in self._used.get(model, set())]
        near = difflib.get_close_matches(lacking[0], own, n=1, cutoff=0)
        others = f"its own are {_listed(list(dict.fromkeys([*near, *own])))}" if own else "it has no others"
        return model, f"lacks {_listed(lacking)}; {others}"

    def skipped(self) -> tuple[Skipped, ...]:
        """Tensors of inputs of which nothing is in the merged model."""
        why = "is in no slice" if self.targets.sliced else "the merged model has no such tensor"
        found = []
        for place, (model, stored) in enumerate(self.targets.models.items()):
            used = self._used.get(model, set(stored.entries))  # none where a base is there for its configuration only
            found += [Skipped(place, name, why) for name in stored.entries if name not in used]
        return tuple(found)

    def warnings(self, steps: tuple[Step, ...]) -> tuple[str, ...]:
        """One line each."""
        return tuple(dict.fromkeys([*self._of_names(), *self._of_steps(steps), *self._of_parameters()]))

    def _of_names(self) -> Iterator[str]:
        for group in self.targets.groups:
            for member in group.members:
                matching = self.targets.matching(group, member)
                if matching.prefix:
                    yield f"names of {member.model} and {group.leader.model} are the same but for {matching.prefix!r}"
        for model, names in self._tied.items():
            yield f"{model} has tied tensors: {_listed(names)}"
        for model, lacking in self._missing.items():
            if names := _telling(lacking):
                yield f"{model} lacks {_listed(names)}: copied, not merged"
        skipped = self.skipped()
        for place, model in enumerate(self.targets.models):
            names = _telling(one.name for one in skipped if one.model == place)
            if names and not self.targets.sliced:
                yield f"{model} has {_listed(names)}, which the merged model has not: left out"

    def _of_steps(self, steps: tuple[Step, ...]) -> Iterator[str]:
        kept = _telling(step.name for step in steps if "which is not merged" in step.note)
        if kept:
            yield f"{_listed(kept)} {'is' if len(kept) == 1 else 'are'} of integers or other types that are copied, not merged"
        if self.recipe.learn is None and (averaged := averaged_statistics(steps)):
            yield f"running statistics: {averaged}: {UNFIT}"
        models = list(self.targets.models.values())
        narrow = [
            step.name
            for step in steps
            if step.action == "merge" and any(models[x.model].entries[x.name].dtype.startswith("F8") for x in step.sources)
        ]
        if narrow:
            yield f"floats of 8 bits: {_listed(narrow)}: merged as they stand, scales that may belong to them are not applied"

    def _of_parameters(self) -> Iterator[str]:
        method = METHODS[self.recipe.merge_method]
        without = {p.name: "results are the same with it" for p in method.parameters if p.effect == "none"}
        if not self.targets.mergekit_semantics:
            without |= {p.name: "it counts with --mergekit-semantics" for p in method.parameters if p.effect == "mergekit"}
        for group in self.targets.groups:
            for level in group.every_level:
                for name in level.settings.keys() & without.keys():
                    yield f"{name!r} has no effect on {method.name}: {without[name]}"
            for i, member in enumerate(group.members):
                if member.level.settings and i not in group.merged(method):
                    yield f"the parameters of {member.model} have no effect: it is the base"


def _telling(names: Iterable[str]) -> list[str]:
    """Without counters, of which nothing has to be said."""
    return [name for name in names if not name.endswith(UNTOLD)]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

"""What is done for each tensor of a merged model: its sources are merged or one is copied, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from alignment.names import is_statistic
from npmerge.checkpoint.stored import Entry, StoredModel
from npmerge.recipe.groups import Group
from npmerge.recipe.layers import place_of
from npmerge.recipe.notices import Notices
from npmerge.recipe.parameters import METHODS, Method
from npmerge.recipe.plan import Source, Step, Value
from npmerge.recipe.resolve import Point, Resolver
from npmerge.recipe.schema import DTYPES, Recipe
from npmerge.recipe.targets import Target, Targets

FLOATING = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""The types that are merged, as safetensors calls them; others are copied."""

MISSING = "is missing in"
"""How the note of a tensor begins that some input lacks."""


class Vocabulary(Protocol):
    """The tokens of the merged model, where vocabularies differ."""

    @property
    def rows(self) -> int:
        """Of the tables of tokens of the result."""

    def holds(self, model: int, name: str) -> bool:
        """Whether a tensor of the model at this place is one of its tables of tokens."""

    def resized(self, sources: Sequence[Source]) -> tuple[Source, ...]:
        """The sources of one table, each with the rows that make it a table of the result's tokens."""


@dataclass(frozen=True)
class _Found:
    """The tensors that belong to a target: of each member of its group the entry, None where it lacks it."""

    target: Target
    group: Group
    entries: tuple[Entry | None, ...]
    sources: tuple[Source | None, ...]

    @property
    def leader(self) -> tuple[Source, Entry]:
        """Those of the group's leader: targets are its tensors."""
        place = self.group.base or 0
        source, entry = self.sources[place], self.entries[place]
        assert source is not None and entry is not None
        return source, entry


@dataclass(frozen=True, eq=False)
class Steps:
    """Makes the steps of a plan.

    Attributes:
        recipe: one document.
        targets: of it.
        vocabulary: where vocabularies differ.
    """

    recipe: Recipe
    targets: Targets
    vocabulary: Vocabulary | None = None

    def all(self) -> tuple[Step, ...]:
        """The steps, in the order of the reference's files, or layer by layer where layers are chosen.

        Raises:
            ValueError: shapes that differ, models that have few tensors in common, and filters that hold for no tensor.
        """
        steps = [self._step(target) for target in self.targets]
        self._check_related()
        self._check_shared(steps)
        self._resolver.check_filters(self.targets.groups, [step.name for step in steps if step.method])
        self._check_patterns([step.name for step in steps])
        if not self.targets.sliced:  # modules may be listed in another order
            order = {name: i for i, name in enumerate(next(iter(self._models.values())).entries)}
            steps.sort(key=lambda step: order.get(step.name, len(order)))
        return tuple(steps)

    @cached_property
    def notices(self) -> Notices:
        """What has to be said of the steps."""
        return Notices(self.recipe, self.targets)

    @cached_property
    def _method(self) -> Method:
        return METHODS[self.recipe.merge_method]

    @cached_property
    def _resolver(self) -> Resolver:
        return Resolver(self.recipe, self._method, self.targets.mergekit_semantics)

    @property
    def _models(self) -> Mapping[str, StoredModel]:
        return self.targets.models

    def _check_related(self) -> None:
        unrelated = self.notices.unrelated()
        for group in self.targets.groups:
            for member in (member for member in group.members if member.model in unrelated):
                first = [next(iter(self._models[model].entries)) for model in (member.model, group.leader.model)]
                got = f"{member.model!r} has no tensor in common with {group.leader.model!r}"
                raise self.recipe.error(member.path, f"{got}: their first ones are {first[0]!r} and {first[1]!r}")

    def _check_shared(self, steps: Sequence[Step]) -> None:
        """Raise ValueError if most of what is to be merged is missing in some model, and so would be the first one's."""
        numbers, tensors = {True: 0, False: 0}, {True: 0, False: 0}
        for step in steps:
            missing = step.note.startswith(MISSING)
            if step.dtype in FLOATING and (missing or step.action == "merge" or not step.note):
                numbers[missing] += step.entry.size
                tensors[missing] += 1  # embeddings may hold half of the numbers of a small network, and nothing else agree
        found = self.notices.other_names()
        few = [counts for counts in (numbers, tensors) if counts[True] > counts[False]]
        if self.recipe.include or not few or found is None:
            return
        model, names = found
        member = next(member for group in self.targets.groups for member in group.members if member.model == model)
        what = "numbers" if few[0] is numbers else "tensors"
        part = f"{few[0][False] / (few[0][True] + few[0][False]):.0%} of the {what} would be merged and the rest copied"
        raise self.recipe.error(member.path, f"{model!r} {names}: {part}; to merge a part only, name it under include")

    def _check_patterns(self, names: Sequence[str]) -> None:
        for key in ("include", "exclude"):
            for i, pattern in enumerate(getattr(self.recipe, key)):
                if not any(map(pattern.matches, names)):
                    raise self.recipe.error((key, i), pattern.missed(names, "of the merged model"))

    def _step(self, target: Target) -> Step:
        if target.group is None:
            model, stored = next(iter(self._models.items()))
            self.notices.matched(model, stored.entries[target.name], target.name)
            return self._copied(target, Source(0, target.name), stored.entries[target.name], "is of no module of the recipe")
        found = self._found(target, target.group)
        if why := self._why_copied(found):
            return self._copied(target, *found.leader, why)
        return self._merged(found)

    def _found(self, target: Target, group: Group) -> _Found:
        entries: list[Entry | None] = []
        for member, name in zip(group.members, target.names, strict=True):
            matching = self.targets.matching(group, member)
            entry = matching.find(name)
            if entry is None and (entry := matching.tied(name)) is not None:
                self.notices.tied(member.model, name, entry.name)
            self.notices.matched(member.model, entry, name)
            entries.append(entry)
        return _Found(target, group, tuple(entries), self._sources(group, entries))

    def _sources(self, group: Group, entries: Sequence[Entry | None]) -> tuple[Source | None, ...]:
        """What is read of each member, resized if it is a table of tokens."""
        places = [list(self._models).index(member.model) for member in group.members]
        sources = [None if entry is None else Source(k, entry.name) for k, entry in zip(places, entries, strict=True)]
        present = [source for source in sources if source is not None]
        if self.vocabulary is None or not any(self.vocabulary.holds(source.model, source.name) for source in present):
            return tuple(sources)
        resized = iter(self.vocabulary.resized(present))
        return tuple(None if source is None else next(resized) for source in sources)

    def _why_copied(self, found: _Found) -> str:
        """Why a tensor is that of the leader rather than merged; empty if it is merged."""
        name = found.target.name
        if self.recipe.include and not any(pattern.matches(name) for pattern in self.recipe.include):
            return "is not in include"
        if any(pattern.matches(name) for pattern in self.recipe.exclude):
            return "is in exclude"
        pairs = list(zip(found.group.members, found.entries, strict=True))
        if lacking := [member.model for member, entry in pairs if entry is None]:
            return f"{MISSING} {', '.join(lacking)}"
        if not found.leader[1].size:
            return "is empty"
        kinds = {entry.dtype for _, entry in pairs if entry is not None and entry.dtype not in FLOATING}
        return f"is of {', '.join(sorted(kinds))}, which is not merged" if kinds else ""

    def _merged(self, found: _Found) -> Step:
        target, entry = found.target, found.leader[1]
        shape = self._shape(found)
        method = self._method.name
        values = self._resolver.parameters(found.group, Point(target.name, target.names, target.depth))
        places = found.group.merged(self._method)
        sources = tuple(source for i in places if (source := found.sources[i]) is not None)
        dtype = DTYPES.get(self.recipe.out_dtype or self.recipe.dtype or "", entry.dtype)
        statistic = is_statistic(target.name.replace(".", "/")) and not self.targets.mergekit_semantics
        if method == "passthrough" and dtype == entry.dtype and (statistic or values["scale"] == (1.0,)):
            return self._copied(target, sources[0], entry, "")
        if statistic:
            return _average(target, sources, shape, dtype, "running statistics are averaged")
        base = found.sources[found.group.base or 0] if self._has_origin(found.group) else None
        return Step(target.name, shape, dtype, "merge", sources, base, method, values, depth=target.depth or 0.0)

    def _has_origin(self, group: Group) -> bool:
        return group.base is not None and self._method.base.startswith("origin")

    def _shape(self, found: _Found) -> tuple[int, ...]:
        """That all sources have, rows of tokens added."""
        shape = self._shape_of(*found.leader)
        for member, entry, source in zip(found.group.members, found.entries, found.sources, strict=True):
            if entry is not None and source is not None and self._shape_of(source, entry) != shape:
                got = f"{found.target.name!r} has the shape {entry.shape} in {member.model!r}"
                rows = len(shape) == 2 and entry.shape[1:] == shape[1:] and place_of(found.target.name) is None
                hint = "; tokenizer_source tells how tables of tokens are joined" if rows else ""
                raise self.recipe.error(member.path, f"{got}, {shape} in {found.group.leader.model!r}{hint}")
        return shape

    def _shape_of(self, source: Source, entry: Entry) -> tuple[int, ...]:
        return entry.shape if source.rows is None or self.vocabulary is None else (self.vocabulary.rows, *entry.shape[1:])

    def _copied(self, target: Target, source: Source, entry: Entry, why: str) -> Step:
        """Bit for bit, unless rows of tokens are added."""
        if source.rows is not None:
            return _average(target, (source,), self._shape_of(source, entry), entry.dtype, why)
        return Step(target.name, entry.shape, entry.dtype, "copy", (source,), note=why, depth=target.depth or 0.0)


def _average(target: Target, sources: tuple[Source, ...], shape: tuple[int, ...], dtype: str, why: str) -> Step:
    values: dict[str, Value] = {"weight": (1.0,) * len(sources), "normalize": True}
    return Step(target.name, shape, dtype, "merge", sources, None, "linear", values, why, target.depth or 0.0)

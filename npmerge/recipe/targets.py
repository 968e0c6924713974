"""The tensors of a merged model, and which tensor of each input belongs to each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from alignment.checks import unknown
from npmerge.checkpoint.stored import StoredModel
from npmerge.recipe.groups import Group, Member, Module, modules_of
from npmerge.recipe.layers import Layers, layers_of
from npmerge.recipe.matching import Matching, match
from npmerge.recipe.schema import Recipe


@dataclass(frozen=True)
class Target:
    """One tensor of the merged model.

    Attributes:
        name: of it.
        group: the inputs that it is merged from; None for a tensor of the reference that is of no module.
        names: the tensor of each member of the group, as the group's leader calls it.
        depth: from 0 (first layer) to 1 (last); None where there are no layers.
    """

    name: str
    group: Group | None
    names: tuple[str, ...]
    depth: float | None


@dataclass(frozen=True, eq=False)
class Targets:
    """The targets of a recipe.

    Attributes:
        recipe: one document.
        models: the inputs by the names that the recipe has for them; the reference is the first.
        mergekit_semantics: whether what is outside the layers is at depth 0, head or not.
    """

    recipe: Recipe
    models: Mapping[str, StoredModel]
    mergekit_semantics: bool = False

    @cached_property
    def modules(self) -> tuple[Module, ...]:
        """Those of the recipe."""
        return modules_of(self.recipe)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Those of all modules."""
        return tuple(group for module in self.modules for group in module.groups)

    @cached_property
    def sliced(self) -> bool:
        """Whether layers are chosen somewhere."""
        return any(module.sliced for module in self.modules)

    def __iter__(self) -> Iterator[Target]:
        """Module after module, then what is of none; whole models in the order of the leader's files.

        Raises:
            ValueError: modules that no tensor is of, layers that a model does not have, models of different numbers of layers.
        """
        for module in self.modules:
            yield from self._sliced(module) if module.sliced else self._whole(module)
        for name in next(iter(self.models.values())).entries:
            if self._module_of(name) is None:
                yield Target(name, None, (name,), None)

    def matching(self, group: Group, member: Member) -> Matching:
        """Between the tensors of a group's leader and those of a member."""
        key = (group.leader.model, member.model)
        if key not in self._matchings:
            self._matchings[key] = match(self.models[key[0]], self.models[key[1]])
        return self._matchings[key]

    @cached_property
    def _matchings(self) -> dict[tuple[str, str], Matching]:
        return {}

    def _module_of(self, name: str) -> Module | None:
        """The module whose name is among the parts of a tensor's; of several the longest; else the one for the whole model."""
        dotted = "." + name.replace("/", ".") + "."
        found = [module for module in self.modules if not module.name or f".{module.name}." in dotted]
        return max(found, key=lambda module: len(module.name), default=None)

    def _names(self, module: Module, group: Group) -> list[str]:
        entries = self.models[group.leader.model].entries
        names = [name for name in entries if self._module_of(name) is module]
        if not names:
            tops = dict.fromkeys(name.replace("/", ".").split(".")[0] for name in entries)
            raise self.recipe.error(module.path, unknown("module", module.name, tops))
        return names

    def _whole(self, module: Module) -> Iterator[Target]:
        (group,) = module.groups
        names = self._names(module, group)
        layers = layers_of(names)
        for member in group.members:
            self._check_same_layers(group, member, layers)
        for name in names:
            yield Target(name, group, (name,) * len(group.members), self._depth(layers, name))

    def _depth(self, layers: Layers, name: str) -> float | None:
        if self.mergekit_semantics:
            return layers.depth(name) if layers.place(name) else 0.0
        return layers.depth(name) if layers.numbers else None

    def _counts(self, group: Group, member: Member) -> Mapping[str, int]:
        """How many layers each stack of a member has, by the leader's names without the prefix that only one of the two has."""
        prefix = self.matching(group, member).prefix
        numbers = layers_of(self.models[member.model].entries).numbers
        return {stack.removeprefix(prefix): len(layers) for stack, layers in numbers.items()}

    def _check_same_layers(self, group: Group, member: Member, layers: Layers) -> None:
        counts, prefix = self._counts(group, member), self.matching(group, member).prefix
        for stack, numbers in layers.numbers.items():
            count = counts.get(stack.removeprefix(prefix), len(numbers))
            if count != len(numbers):
                what = f"{member.model!r} has {count} layers {stack}*, {group.leader.model!r} has {len(numbers)}"
                raise self.recipe.error(member.path, f"{what}: choose as many of each with slices")

    def _sliced(self, module: Module) -> Iterator[Target]:
        stack = self._stack(module, module.groups[0])
        yield from self._ends(module, module.groups[0], after=False)
        start = 0
        for group in module.groups:
            if self._stack(module, group) != stack:
                raise self.recipe.error(group.path, f"layers are not named {stack}* as those of the first slice")
            for member in group.members:
                self._check_range(group, member, stack)
            yield from self._layers(group, stack, start)
            start += group.layers or 0
        yield from self._ends(module, module.groups[-1], after=True)

    def _stack(self, module: Module, group: Group) -> str:
        """The only stack of layers of the module."""
        stacks = list(layers_of(self._names(module, group)).numbers)
        if len(stacks) != 1:
            hint = "name the modules that they are in under 'modules'" if stacks else "use models"
            got = ", ".join(f"{stack}*" for stack in stacks) or "none"
            raise self.recipe.error(group.path, f"slices need one stack of layers, got {got}: {hint}")
        return stacks[0]

    def _check_range(self, group: Group, member: Member, stack: str) -> None:
        count = self._counts(group, member).get(stack.removeprefix(self.matching(group, member).prefix), 0)
        first, end = member.first or 0, (member.first or 0) + (group.layers or 0)
        if end > count:
            path = (*member.path[:-1], "layer_range")
            raise self.recipe.error(path, f"{member.model!r} has {count} layers {stack}*, got [{first}, {end}]")

    def _ends(self, module: Module, group: Group, *, after: bool) -> Iterator[Target]:
        """What stands before the layers, from the first slice, or after them, from the last."""
        names = self._names(module, group)
        layers = layers_of(names)
        depth = float(after and not self.mergekit_semantics)
        for name in names:
            if layers.place(name) is None and layers.is_after(name) == after:
                yield Target(name, group, (name,) * len(group.members), depth)

    def _layers(self, group: Group, stack: str, start: int) -> Iterator[Target]:
        layers = layers_of(self.models[group.leader.model].entries)
        places = [place for name in layers.order if (place := layers.place(name)) and place.stack == stack]
        count = group.layers or 0
        for k in range(count):
            for place in places:
                if place.number == (group.leader.first or 0) + k:
                    names = tuple(place.name((member.first or 0) + k) for member in group.members)
                    yield Target(place.name(start + k), group, names, k / (count - 1) if count > 1 else 1.0)

"""The value of every parameter for one tensor: the most specific block of the recipe that has one for its name wins."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from npmerge.recipe.groups import Group, Level
from npmerge.recipe.parameters import Method, Parameter
from npmerge.recipe.plan import Value
from npmerge.recipe.schema import Recipe
from npmerge.recipe.settings import Path, Scalar


class Point(NamedTuple):
    """A tensor as settings see it.

    Attributes:
        name: of the merged tensor.
        names: of the tensor of each member of the group, as the leader calls it.
        depth: from 0 to 1; None for a model without layers.
    """

    name: str
    names: Sequence[str]
    depth: float | None


@dataclass(frozen=True, eq=False)
class Resolver:
    """Looks up values, and keeps in mind which filters have held for a tensor.

    Attributes:
        recipe: one document.
        method: its method.
        mergekit_semantics: whether weights of `nuslerp` may sum to zero.
    """

    recipe: Recipe
    method: Method
    mergekit_semantics: bool = False
    _held: set[Path] = field(default_factory=set)

    def parameters(self, group: Group, at: Point) -> dict[str, Value]:
        """Every parameter of the method with its value: one, or one per model that is merged.

        Raises:
            ValueError: a value that is missing, and values that do not go together (file, line and the tensor).
        """
        values: dict[str, Value] = {}
        for parameter in self.method.parameters:
            if parameter.scope == "shared":
                value: Value = self._value(parameter, group.levels, at.name, at.depth)
            else:
                value = tuple(self._of_members(parameter, group, at))
            if parameter.effect != "none":
                values[parameter.name] = value
        self._check_together(values, group, at.name)
        return values

    def _of_members(self, parameter: Parameter, group: Group, at: Point) -> Iterator[Scalar]:
        for i in group.merged(self.method):
            levels = (group.members[i].level, *group.levels)
            yield self._value(parameter, levels, at.names[i], at.depth)

    def _value(self, parameter: Parameter, levels: Sequence[Level], name: str, depth: float | None) -> Scalar:
        found: Scalar | None = None
        for level in levels:
            setting = level.settings.get(parameter.name)
            for i, clause in enumerate(setting.clauses if setting else ()):
                if not clause.holds(name):
                    continue
                self._held.add((*level.path, parameter.name, i))
                if found is None:
                    if depth is None and len(clause.values) > 1:
                        raise self.recipe.error(
                            (*level.path, parameter.name),
                            "is a list over depth, but the names of the tensors tell no layers: give one value per filter",
                        )
                    found = clause.at(depth or 0.0, parameter.kind)
        if found is not None:
            return found
        if parameter.default is None or isinstance(parameter.default, tuple):
            path = (*levels[0].path, parameter.name)
            raise self.recipe.error(path, f"no value for {name!r}: add an entry without a filter, which is the default")
        return parameter.default

    def _check_together(self, values: dict[str, Value], group: Group, name: str) -> None:
        weights = values.get("weight", ())
        dividing = ("linear", "mlerp", "multislerp", *(() if self.mergekit_semantics else ("nuslerp",)))
        asked = values.get("normalize", True) and values.get("normalize_weights", True)
        if self.method.name in dividing and asked and isinstance(weights, tuple) and abs(sum(weights)) < 1e-12:
            raise self.recipe.error(group.path, f"the weights of {name!r} sum to zero, by which they are divided: {weights}")
        if "epsilon" in values:
            for density, epsilon in zip(values["density"], values["epsilon"], strict=True):  # type: ignore[arg-type]
                if 0 < density < 1 and not epsilon < density <= 1 - epsilon:
                    text = f"epsilon {epsilon} and density {density} for {name!r}: expected epsilon < density <= 1 - epsilon"
                    raise self.recipe.error(group.path, text)

    def check_filters(self, groups: Sequence[Group], names: Sequence[str]) -> None:
        """Check that every filter of the recipe has held for a tensor.

        Args:
            groups: of the recipe.
            names: of the tensors, for the message.

        Raises:
            ValueError: one that has not (file, line).
        """
        for level in (level for group in groups for level in group.every_level):
            for name, setting in level.settings.items():
                for i, clause in enumerate(setting.clauses):
                    if clause.filter is not None and (*level.path, name, i) not in self._held:
                        path = (*level.path, name, i, "filter")
                        raise self.recipe.error(path, clause.filter.missed(names, "that is merged"))

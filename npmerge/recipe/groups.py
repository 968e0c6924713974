"""A recipe in one form: groups of inputs that are merged with each other, whether it writes models, slices or modules."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from npmerge.recipe.parameters import METHODS, Method
from npmerge.recipe.references import normal
from npmerge.recipe.schema import Input, LayerInput, Part, Recipe, Tokenizer, TokenSource
from npmerge.recipe.settings import Path, Setting

Settings = Mapping[str, Setting]


@dataclass(frozen=True)
class Level:
    """Parameters as one block of the recipe has them, and where it stands."""

    path: Path
    settings: Settings


@dataclass(frozen=True)
class Member:
    """An input of a group.

    Attributes:
        model: as the recipe names it, in one spelling.
        path: where it is named.
        level: its own parameters.
        first: its first layer; None where models are merged as a whole.
    """

    model: str
    path: Path
    level: Level
    first: int | None = None


@dataclass(frozen=True)
class Group:
    """Inputs that are merged with each other.

    Attributes:
        members: in the order of the recipe; a base that the recipe does not list is the last.
        base: place of the base in `members`, None if it is not among them.
        levels: parameters of all members, from the most specific on: of the slice, the module and the recipe.
        path: of the group in the recipe.
        layers: how many there are; None where models are merged as a whole.
    """

    members: tuple[Member, ...]
    base: int | None
    levels: tuple[Level, ...]
    path: Path
    layers: int | None = None

    @property
    def leader(self) -> Member:
        """Whose tensors the result has: the base, or the first member."""
        return self.members[self.base or 0]

    @property
    def every_level(self) -> tuple[Level, ...]:
        """The parameters of each member, then those of all."""
        return (*(member.level for member in self.members), *self.levels)

    def merged(self, method: Method) -> list[int]:
        """Places of the members that are merged, in the order of `Step.sources`: without a base that is the origin only."""
        places = list(range(len(self.members)))
        if self.base is None or method.base == "input":
            return places
        rest = [i for i in places if i != self.base]
        return [self.base, *rest] if method.base == "first" else rest


@dataclass(frozen=True)
class Module:
    """Groups for the tensors of one module: one for whole models, or one per slice. The name "" stands for the whole model."""

    name: str
    groups: tuple[Group, ...]
    path: Path

    @property
    def sliced(self) -> bool:
        """Whether layers are chosen."""
        return self.groups[0].layers is not None


def modules_of(recipe: Recipe) -> tuple[Module, ...]:
    """The groups of a recipe.

    Raises:
        ValueError: a base that a slice cannot take its layers from (file and line).
    """
    if recipe.modules is None:
        return (_module(recipe, Part.model_construct(models=recipe.models, slices=recipe.slices, parameters={}), "", ()),)
    return tuple(_module(recipe, part, name, ("modules", name)) for name, part in recipe.modules.items())


def groups_of(recipe: Recipe) -> tuple[Group, ...]:
    """The groups of all modules of a recipe. Raises ValueError as `modules_of`."""
    return tuple(group for module in modules_of(recipe) for group in module.groups)


def _module(recipe: Recipe, part: Part, name: str, path: Path) -> Module:
    top = Level(("parameters",), recipe.parameters)
    levels = (Level((*path, "parameters"), part.parameters), top) if path else (top,)
    base = _base(recipe.base_model, ("base_model",))
    if part.models is not None:
        groups = [_group(recipe, part.models, base, (*path, "models"), levels)]
    else:
        groups = []
        for i, piece in enumerate(part.slices or ()):
            at = (*path, "slices", i)
            own = (Level((*at, "parameters"), piece.parameters), *levels)
            own_base = _base(piece.base_model, (*at, "base_model")) or base
            groups.append(_group(recipe, piece.sources, own_base, (*at, "sources"), own))
    return Module("" if name == "default" else name, tuple(groups), path)


def _base(model: str | None, path: Path) -> Member | None:
    return None if model is None else Member(normal(model), path, Level((), {}))


def _group(
    recipe: Recipe, inputs: Sequence[Input | LayerInput], base: Member | None, path: Path, levels: tuple[Level, ...]
) -> Group:
    members = [_member(source, (*path, i)) for i, source in enumerate(inputs)]
    ranges = [source.layer_range for source in inputs if isinstance(source, LayerInput)]
    place = next((i for i, member in enumerate(members) if base and base.model == member.model), None)
    if base is not None and place is None and _joins(recipe, ranges):
        if len(set(ranges)) > 1:
            raise recipe.error(path, f"which layers of the base {base.model!r} is open: list it among the sources")
        place = len(members)
        members.append(replace(base, first=ranges[0][0] if ranges else None))
    return Group(tuple(members), place, levels, path, ranges[0][1] - ranges[0][0] if ranges else None)


def _joins(recipe: Recipe, ranges: list[tuple[int, int]]) -> bool:
    """Whether a base that is not listed is an input, as in mergekit: not in slices of methods that treat it like a model."""
    return not ranges or METHODS[recipe.merge_method].base != "input"


def _member(source: Input | LayerInput, path: Path) -> Member:
    first = source.layer_range[0] if isinstance(source, LayerInput) else None
    return Member(normal(source.model), (*path, "model"), Level((*path, "parameters"), source.parameters), first)


def inputs_of(recipe: Recipe) -> tuple[str, ...]:
    """The models that are opened, each once: the base, then the others in the order in which they are named."""
    base = [] if recipe.base_model is None else [normal(recipe.base_model)]
    return tuple(dict.fromkeys([*base, *(member.model for group in groups_of(recipe) for member in group.members)]))


TOKENIZER_SOURCES: tuple[Path, ...] = (("tokenizer_source",), ("tokenizer", "source"))
"""Where the tokenizer of the result is named: a model, or "union" or "base"."""


def references_of(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """Whatever names a model, also one whose tokens are taken, with its place in the recipe."""
    if recipe.base_model is not None:
        yield ("base_model",), recipe.base_model
    for member in (member for group in groups_of(recipe) for member in group.members):
        yield member.path, member.model
    yield from _of_tokens(recipe)


def _of_tokens(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    tokenizer = recipe.tokenizer or Tokenizer()
    for path, source in zip(TOKENIZER_SOURCES, (recipe.tokenizer_source, tokenizer.source), strict=True):
        if source not in (None, "union", "base"):
            yield path, source
    for token, wanted in (tokenizer.tokens or {}).items():
        model = wanted.source.model if isinstance(wanted.source, TokenSource) else wanted.source
        if model is not None:
            yield ("tokenizer", "tokens", token), model

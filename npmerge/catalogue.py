"""What each merge method asks of its user, read off its class: no table is kept by hand."""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from npmerge.base import Merge, number_of_models

Answer = bool | str
"""Yes, no, or by which option."""


@dataclass(frozen=True)
class Hyper:
    """A hyper-parameter.

    Attributes:
        name: of the field.
        default: its value unless given; None beside `required`.
        required: whether it has to be given.
        grid: the values that papers search it among, none if they do not say.
        choices: all its values, where there are few.
    """

    name: str
    default: Any
    required: bool
    grid: tuple[Any, ...]
    choices: tuple[Any, ...]


@dataclass(frozen=True)
class Asks:
    """What a method asks.

    Attributes:
        name: of its class.
        summary: the first paragraph of its docstring.
        models: the fewest and the most that it merges, None for any number.
        base: whether it needs the network that the models were fine-tuned from, or with which option.
        statistics: those that `collect` is to gather.
        data: whether it needs examples at all, or through which function that it is given.
        labels: whether it needs their labels too, with which kind of its statistics, or through which function.
        activations: whether it needs those of nodes or layers.
        gradients: whether it needs those of examples.
        key: whether it draws at random.
        same_initialisation: whether the models have to come from one: "yes" if differences from a base are merged; "or aligned"
            where weights are combined, for which models can be brought into the units of one of them; "no" for one model.
        hyper: its hyper-parameters.
    """

    name: str
    summary: str
    models: tuple[int, int | None]
    base: Answer
    statistics: tuple[str, ...]
    data: Answer
    labels: Answer
    activations: bool
    gradients: bool
    key: Answer
    same_initialisation: Literal["yes", "or aligned", "no"]
    hyper: tuple[Hyper, ...]

    @property
    def number(self) -> str:
        """Of models, in words."""
        return "any number of models" if self.models == (1, None) else number_of_models(*self.models)


def asks(method: type[Merge]) -> Asks:
    """What a method asks with its default hyper-parameters, and what changes with its options."""
    base, needs = _answer(method, "needs_base"), _bare(method).needs
    reads: frozenset[str] = frozenset().union(*(s().reads for s in needs))
    return Asks(
        name=method.__name__,
        summary=" ".join((inspect.getdoc(method) or "").split("\n\n")[0].split()),
        models=method.models,
        base=base,
        statistics=tuple(s.__name__ for s in needs),
        data=bool(needs) or _through(method),
        labels="labels" in reads or _with_labels(needs) or _through(method),
        activations="activations" in reads,
        gradients="gradients" in reads,
        key=_answer(method, "random"),
        same_initialisation="no" if method.models == (1, 1) else "yes" if base is True else "or aligned",
        hyper=tuple(map(_hyper, _fields(method))),
    )


def _answer(method: type[Merge], fact: str) -> Answer:
    """What an instance with default fields says, or else the option that turns it on."""
    bare = _bare(method)
    if getattr(bare, fact):
        return True
    switches = [f.name for f in _fields(method) if f.default is False]
    able = [name for name in switches if getattr(_bare(method, **{name: True}), fact)]
    return f"with {able[0]}" if able else False


def _through(method: type[Merge]) -> Answer:
    """The function that has to be given, which looks at data if anything does."""
    given = [f.name for f in _fields(method) if f.type is Callable or typing.get_origin(f.type) is Callable]
    required = [name for name in given if not hasattr(method, name)]
    return f"through {required[0]}" if required else False


def _with_labels(needs: Sequence[type]) -> Answer:
    """The choice of a statistic's field with which it reads labels."""
    choices = ((s, field.name, choice) for s in needs for field in dataclasses.fields(s) for choice in _choices(field))
    able = [choice for s, name, choice in choices if "labels" in s(**{name: choice}).reads]
    return f"with {able[0]}" if able else False


def _bare(method: type[Merge], **fields: Any) -> Merge:
    """An instance that was never initialised: fields without a default are missing."""
    bare: Merge = object.__new__(method)
    for name, value in fields.items():
        object.__setattr__(bare, name, value)
    return bare


def _fields(method: type[Merge]) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(method)  # type: ignore[arg-type]


def _hyper(field: dataclasses.Field) -> Hyper:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    required = default is dataclasses.MISSING
    return Hyper(
        name=field.name,
        default=None if required else default,
        required=required,
        grid=field.metadata.get("grid", ()),
        choices=_choices(field),
    )


def _choices(field: dataclasses.Field) -> tuple[Any, ...]:
    """Those of a `Literal`, perhaps beside None, and of a bool."""
    if field.type is bool:
        return (False, True)
    kinds = (field.type, *typing.get_args(field.type))
    literals = [value for kind in kinds if typing.get_origin(kind) is Literal for value in typing.get_args(kind)]
    return (*literals, *([None] if literals and type(None) in kinds else []))

"""What a recipe may hold: mergekit's keys and ours, checked by pydantic."""

import pathlib
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainValidator,
    PrivateAttr,
    StrictBool,
    StrictInt,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from alignment.checks import unknown
from npmerge.recipe.blocks import Align, Learn
from npmerge.recipe.filters import Filters
from npmerge.recipe.lines import Document
from npmerge.recipe.parameters import METHODS, REFUSED
from npmerge.recipe.settings import Path, Setting, SettingError, read_setting, shown
from npmerge.recipe.strict import Block, fault

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
"""The types that a recipe can ask for, with safetensors' names."""


def _setting(raw: Any) -> Setting:
    try:
        return read_setting(raw)
    except SettingError as error:
        raise fault(str(error), error.path) from None


def _some(raw: Any) -> Any:
    if not isinstance(raw, list) or not raw:
        raise fault(f"expected a list of one or more, got {shown(raw)}")
    return raw


def _dtype(raw: str) -> str:
    name = raw.removeprefix("torch.")
    if name not in DTYPES:
        raise fault(unknown("dtype", raw, DTYPES))
    return name


def _plain(name: str) -> str:
    if name in (".", "..") or "/" in name or "\\" in name:
        raise fault(f"expected a name without slashes, got {name!r}")
    return name


def _method(raw: str) -> str:
    if raw in REFUSED:
        raise fault(f"{raw!r} {REFUSED[raw]}, expected one of {', '.join(METHODS)}")
    if raw not in METHODS:
        raise fault(unknown("method", raw, METHODS))
    return raw


Parameters = Annotated[dict[str, Annotated[Setting, PlainValidator(_setting)]], Field(default_factory=dict)]
DtypeName = Annotated[str, AfterValidator(_dtype)]


def _path_of(raw: Any) -> Any:
    """The path, where a model is written as a mapping, as mergekit has it, too."""
    while isinstance(raw, dict) and len(raw) == 1 and (key := next(iter(raw))) in ("model", "path"):
        raw = raw[key]
    if isinstance(raw, dict):
        raise fault(f"expected the path of a model, base+adapter, or a mapping with path alone, got {shown(raw)}")
    return raw


Name = Annotated[str, BeforeValidator(_path_of), Field(min_length=1)]


class Input(Block):
    """A model that is merged as a whole."""

    model: Name
    parameters: Parameters


class LayerInput(Block):
    """Some layers of a model: from the first of `layer_range` up to but without the second."""

    model: Name
    layer_range: tuple[StrictInt, StrictInt]
    parameters: Parameters

    @field_validator("layer_range", mode="before")
    @classmethod
    def _check_range(cls, raw: Any) -> tuple[int, int]:
        whole = isinstance(raw, list | tuple) and len(raw) == 2 and all(type(x) is int for x in raw)
        if not whole or not 0 <= raw[0] < raw[1]:
            raise fault(f"expected [first, last + 1] with 0 <= first <= last, got {shown(raw)}")
        return raw[0], raw[1]


class Slice(Block):
    """Layers of the result, merged from as many of each source."""

    refused: ClassVar = {"residual_weight": "mergekit reads it and ignores it, so leave it out"}
    sources: Annotated[tuple[LayerInput, ...], BeforeValidator(_some)]
    base_model: Name | None = None
    parameters: Parameters

    @field_validator("sources")
    @classmethod
    def _check_lengths(cls, value: tuple[LayerInput, ...]) -> tuple[LayerInput, ...]:
        lengths = [source.layer_range[1] - source.layer_range[0] for source in value]
        for i, length in enumerate(lengths):
            if length != lengths[0]:
                raise fault(f"expected {lengths[0]} layers as of the first source, got {length}", (i, "layer_range"))
        return value


class Part(Block):
    """What is merged: whole models, or slices of their layers."""

    models: Annotated[tuple[Input, ...], BeforeValidator(_some)] | None = None
    slices: Annotated[tuple[Slice, ...], BeforeValidator(_some)] | None = None
    parameters: Parameters

    @model_validator(mode="after")
    def _check_one(self) -> "Part":
        _exactly_one(self, ("models", "slices"))
        return self


class TokenSource(Block):
    """Where the embedding of a token comes from: a token of a model, or zeros."""

    kind: Literal["model_token", "zero"]
    model: Name | None = None
    token_id: Annotated[StrictInt, Field(ge=0)] | None = None
    token: str | None = None

    @model_validator(mode="after")
    def _check_token(self) -> "TokenSource":
        given = [self.model is not None, self.token_id is not None or self.token is not None]
        if self.kind == "zero" and any(given):
            raise fault("zeros are of no model and no token")
        if self.kind == "model_token" and (not all(given) or (self.token_id is not None and self.token is not None)):
            raise fault("expected a model and one of token_id and token")
        return self


class Token(Block):
    """The embedding of one token; `force` also where a model has one of its own."""

    source: (
        Annotated[
            Annotated[Name, Tag("name")] | Annotated[TokenSource, Tag("token")],
            Discriminator(lambda raw: "name" if isinstance(raw, str) else "token"),
        ]
        | None
    ) = None
    force: StrictBool = False


class Tokenizer(Block):
    """Which tokens the result has: the "union" of all, those of the "base", or those of a model."""

    source: Name = "union"
    tokens: dict[str, Token] | None = None
    pad_to_multiple_of: Annotated[StrictInt, Field(ge=1)] | None = None


class Recipe(Block):
    """One document of a recipe file. Keys are mergekit's, besides the last five, which are ours."""

    refused: ClassVar = {
        "experts": "mixtures of experts are not made",
        "gate_mode": "mixtures of experts are not made",
        "genome": "evolutionary merges are not made",
        "tasks": "evolutionary merges are not made",
        "adapters": "adapters are not supported",
    }
    below: ClassVar = {"learn": Learn, "align": Align}

    name: Annotated[Name, AfterValidator(_plain)] | None = None
    merge_method: Annotated[str, AfterValidator(_method)]
    models: Annotated[tuple[Input, ...], BeforeValidator(_some)] | None = None
    slices: Annotated[tuple[Slice, ...], BeforeValidator(_some)] | None = None
    modules: Annotated[dict[str, Part], Field(min_length=1)] | None = None
    base_model: Name | None = None
    parameters: Parameters
    dtype: DtypeName | None = None
    out_dtype: DtypeName | None = None
    tokenizer_source: Name | None = None
    tokenizer: Tokenizer | None = None
    chat_template: Name | None = None
    include: Filters = ()
    exclude: Filters = ()
    seed: Annotated[StrictInt, Field(ge=0, lt=2**32)] | None = None
    align: Align | None = None
    learn: Learn | None = None
    _document: Document = PrivateAttr(default_factory=Document)

    @field_validator("align", "learn", mode="before")
    @classmethod
    def _check_filled(cls, raw: Any, info: ValidationInfo) -> Any:
        if raw is None:
            raise fault(f"is empty: give at least {'method' if info.field_name == 'align' else 'data'}")
        return raw

    @model_validator(mode="after")
    def _check_alternatives(self) -> "Recipe":
        _exactly_one(self, ("models", "slices", "modules"))
        if self.tokenizer is not None and self.tokenizer_source is not None:
            raise fault("tokenizer and tokenizer_source exclude each other, got both", ("tokenizer_source",))
        return self

    @property
    def folder(self) -> pathlib.Path | None:
        """Where its file lies; None for a recipe that is no file."""
        file = pathlib.Path(self._document.file)
        return file.parent if file.is_file() else None

    @property
    def libraries(self) -> tuple[str, ...]:
        """Those that decide on the bytes of the result, besides NumPy and JAX."""
        blocks = [block for block in (self.align, self.learn) if block is not None]
        kinds = {block.architecture.name.partition(":")[0] for block in blocks if block.architecture is not None}
        learning = () if self.learn is None else ("flax", "optax")
        modules = ("torch", "torchax") if kinds & {"torch", "hf"} else ()
        return (*learning, *modules, *(("transformers",) if "hf" in kinds else ()))

    def error(self, path: Path, message: str) -> ValueError:
        """An error about what stands at the path, with the file and the line."""
        return self._document.error(path, message)


def _exactly_one(block: Block, keys: tuple[str, ...]) -> None:
    given = [key for key in keys if getattr(block, key) is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise fault(f"expected exactly one of {', '.join(keys)}, got {got}", tuple(given[1:2]))

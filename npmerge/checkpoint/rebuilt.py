"""What pickles of PyTorch may name: tensors on storages, dtypes and containers become data; all else is refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from npmerge.checkpoint.pickles import Global, Opaque, Pairs


@dataclass(frozen=True)
class Storage:
    """A storage that tensors share.

    Attributes:
        key: by which the file knows it.
        dtype: as NumPy calls it; "uint8" for one without a type.
        size: entries.
        base: entries before it in the storage of that key: files of old share storages so.
        whole: entries of the storage of that key.
    """

    key: str
    dtype: str
    size: int
    base: int
    whole: int


@dataclass(frozen=True)
class Strided:
    """A tensor: where its entries lie in a storage. Nothing has been checked.

    Attributes:
        storage: as above.
        dtype: as NumPy calls it.
        offset: of the first entry, in entries.
        shape: of the tensor.
        strides: in entries.
    """

    storage: Storage
    dtype: str
    offset: Any
    shape: Any
    strides: Any


STORAGES: Final[Mapping[str, str]] = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "Untyped": "uint8",
}
"""NumPy's dtype for each `torch.<...>Storage`."""

_SAME = """
bool float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 complex64 int64 int32 int16 int8 uint8 uint16 uint32 uint64
"""

SCALARS: Final = {f"torch.{x}": x for x in _SAME.split()}
"""NumPy's dtype for each dtype of PyTorch that is read."""

_INERT: Final = {
    "argparse": "Namespace",
    "_codecs": "encode",
    "collections": "Counter",
    "builtins": "set frozenset complex slice bytearray",
    "__builtin__": "set frozenset complex slice bytearray",
    "torch": "device Generator",
    "datetime": "datetime date timedelta timezone",
    "pathlib": "Path PosixPath PurePosixPath WindowsPath PureWindowsPath",
    "numpy": "dtype",
    "numpy.core.multiarray": "scalar _reconstruct",
    "numpy._core.multiarray": "scalar _reconstruct",
    "numpy._core.numeric": "_frombuffer",
}

INERT: Final = frozenset(f"{module}.{name}" for module, names in _INERT.items() for name in names.split())
"""Classes and functions whose objects lie beside tensors in many files: neither imported nor called, left out."""

WRAPPERS: Final = frozenset(["torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"])


def call(name: str, arguments: tuple[Any, ...]) -> Any:
    """The data that stand for calling what a pickle of PyTorch names. Raises KeyError for what is not on the list."""
    if name == "torch._tensor._rebuild_from_type_v2":
        function, kind, inner = arguments[:3]
        if not isinstance(function, Global) or not isinstance(inner, tuple):
            raise TypeError("a tensor made by what is no function")
        if not isinstance(kind, Global) or kind.name not in WRAPPERS:
            raise KeyError(name)
        return call(function.name, inner) if function.name in TENSORS else _refused(function.name)
    if name in TENSORS:
        return _tensor(name, arguments)
    if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        if not isinstance(arguments[0], Strided):
            raise TypeError("a parameter without a tensor")
        return arguments[0]
    if name in ("collections.OrderedDict", "collections.defaultdict", "builtins.dict", "__builtin__.dict"):
        return _dictionary(arguments if name != "collections.defaultdict" else arguments[1:])
    if name == "torch.Size":
        return tuple(arguments[0])
    return Opaque(name) if name in INERT else _refused(name)


def persistent(value: Any) -> Storage:
    """The storage that a persistent id names. Raises ValueError for any other."""
    if not isinstance(value, tuple) or len(value) not in (5, 6) or value[0] not in ("storage", b"storage"):
        raise ValueError("a persistent id that is no storage")
    _, kind, key, _, size = value[:5]
    if not isinstance(kind, Global) or not isinstance(key, str) or not _length(size):
        raise TypeError("a storage without a type, a key or a length")
    view = value[5] if len(value) == 6 else None
    base, viewed = (0, size) if view is None else _view(view)
    if base + viewed > size:
        raise ValueError("a view of a storage that reaches beyond it")
    return Storage(key, _storage_dtype(kind.name), viewed, base, size)


def _refused(name: str) -> Any:
    raise KeyError(name)


def _length(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**60


def _view(view: Any) -> tuple[int, int]:
    _, base, size = view
    if not _length(base) or not _length(size):
        raise ValueError("a view of a storage without a length")
    return base, size


def _storage_dtype(name: str) -> str:
    for module in ("torch.", "torch.storage.", "torch.cuda."):
        kind = name.removeprefix(module).removesuffix("Storage")
        if name == f"{module}{kind}Storage" and kind in STORAGES:
            return STORAGES[kind]
    raise ValueError(f"storages of the type {name[:100]!r}, which is not read")


def _tensor(name: str, arguments: tuple[Any, ...]) -> Strided:
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    dtype = storage.dtype
    if name == "torch._utils._rebuild_tensor_v3":
        if not isinstance(arguments[6], Global) or arguments[6].name not in SCALARS:
            raise ValueError(f"a tensor of the dtype {getattr(arguments[6], 'name', '')[:100]!r}, which is not read")
        dtype = SCALARS[arguments[6].name]
    return Strided(storage, dtype, offset, shape, strides)


def _dictionary(arguments: tuple[Any, ...]) -> Pairs:
    if not arguments:
        return Pairs()
    if isinstance(arguments[0], Pairs):
        return Pairs(list(arguments[0].items))
    return Pairs([(key, value) for key, value in arguments[0]])


TENSORS: Final = frozenset(
    ["torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"]
)

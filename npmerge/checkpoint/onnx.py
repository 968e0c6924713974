"""ONNX models: their initialisers, through the package `onnx`."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from npmerge.checkpoint.dtypes import DTYPES
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.spans import NamedModel, Span, checked_entry, gather, guarded, optional
from npmerge.checkpoint.stored import Entry

STORED = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    16: "bfloat16",
    17: "float8_e4m3fn",
    19: "float8_e5m2",
}
"""NumPy's dtype for each data type of `TensorProto` that is read."""

MOST = 2**31
"""Bytes of a file: protobuf has no longer messages."""

DEEPEST = 16
"""Graphs in one another that are followed."""

Source = Span | bytes


class ONNXModel(NamedModel):
    """The initialisers of a model. The file itself is held in memory; data outside it is read when asked for."""

    def __init__(self, path: Path, tensors: Mapping[str, tuple[Entry, Source]], notes: list[str]):
        super().__init__(path, (entry for entry, _ in tensors.values()), notes)
        self._sources = {name: source for name, (_, source) in tensors.items()}

    def _part(self, name: str, start: int, count: int) -> np.ndarray:
        dtype, source = DTYPES[self.entries[name].dtype], self._sources[name]
        if isinstance(source, bytes):
            return np.frombuffer(source, dtype, count, start * dtype.itemsize).copy()
        buffer = np.empty(count * dtype.itemsize, np.uint8)
        gather((source,), start * dtype.itemsize, buffer)
        return buffer.view(dtype)


def open_file(path: Path) -> ONNXModel:
    """An ONNX file whose tensors are its initialisers, named as there; those of inner graphs are "node/attribute/name".

    Tensors that stand in nodes `Constant` are read too, since some exporters keep weights there, and named by their outputs.
    Notes say how many, and how many constants of other kinds are left out.

    Raises:
        CheckpointError: no such file, a damaged one, tensors whose bytes do not fill their shapes, types that NumPy lacks,
            sparse tensors, data in files outside the folder or through links, a missing package.
    """
    package = optional("onnx", "onnx", path)
    try:
        if path.stat().st_size > MOST:
            raise CheckpointError(path, f"takes more than {MOST} bytes, which no ONNX file does")
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from None
    decode_error = optional("google.protobuf.message", "onnx", path).DecodeError
    model = guarded(path, "an ONNX file", lambda: package.load(str(path), load_external_data=False), decode_error)
    if not model.graph.node and not model.graph.initializer:
        raise CheckpointError(path, "is not an ONNX file, or it has no graph")
    return guarded(path, "an ONNX file", lambda: _model(path, model, package))


def _model(path: Path, model: Any, package: Any) -> ONNXModel:
    tensors: dict[str, tuple[Entry, Source]] = {}
    in_nodes = left = 0
    for prefix, graph in _graphs(path, model.graph, "", 0):
        constants = [x for node in graph.node if node.op_type == "Constant" for x in _constant(node)]
        found = [(name, x) for name, x in constants if x is not None]
        in_nodes, left = in_nodes + len(found), left + len(constants) - len(found)
        if graph.sparse_initializer:
            raise CheckpointError(path, "is sparse, which is not read", prefix + graph.sparse_initializer[0].values.name)
        for name, tensor in [*((x.name, x) for x in graph.initializer), *found]:
            if prefix + name in tensors:
                raise CheckpointError(path, "stands there twice", prefix + name)
            tensors[prefix + name] = _tensor(path, prefix + name, tensor, package)
    notes = [f"{in_nodes} tensors stand in nodes Constant, not among the initialisers"] if in_nodes else []
    return ONNXModel(path, tensors, notes + ([f"left out: {left} constants that are no tensors"] if left else []))


def _constant(node: Any) -> Iterator[tuple[str, Any]]:
    """The output of a node `Constant` and its tensor, None for a value of another kind."""
    for attribute in node.attribute:
        yield node.output[0] if node.output else node.name, attribute.t if attribute.HasField("t") else None


def _graphs(path: Path, graph: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    """A graph and those that its nodes carry, such as the branches of an If, each with what its names begin with."""
    if depth > DEEPEST:
        raise CheckpointError(path, f"holds more than {DEEPEST} graphs in one another", prefix)
    yield prefix, graph
    for k, node in enumerate(graph.node):
        for attribute in node.attribute:
            inner = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            for number, x in enumerate(inner):
                place = f"{node.name or f'{node.op_type}_{k}'}/{attribute.name}{number or ''}/"
                yield from _graphs(path, x, prefix + place, depth + 1)


def _tensor(path: Path, name: str, tensor: Any, package: Any) -> tuple[Entry, Source]:
    if tensor.data_type not in STORED:
        raise CheckpointError(path, f"has the data type {tensor.data_type} of ONNX, which is not read", name)
    if tensor.HasField("segment"):
        raise CheckpointError(path, "is stored in segments, which is not read", name)
    dtype, shape = STORED[tensor.data_type], [int(x) for x in tensor.dims]
    if tensor.data_location == package.TensorProto.EXTERNAL:
        span = _external(path, name, tensor)
        entry = checked_entry(path, name, dtype, shape)
        if span.nbytes not in (entry.nbytes, -1):
            raise CheckpointError(path, f"({dtype} {shape}) needs {entry.nbytes} bytes, its file gives {span.nbytes}", name)
        span = Span(span.path, span.offset, entry.nbytes)
        if span.offset + span.nbytes > span.path.stat().st_size:
            raise CheckpointError(path, f"ends at byte {span.offset + span.nbytes} of {span.path.name}: truncated?", name)
        return entry, span
    if tensor.HasField("raw_data"):
        return checked_entry(path, name, dtype, shape, len(tensor.raw_data)), tensor.raw_data
    entry = checked_entry(path, name, dtype, shape)
    given = sum(
        len(x) for x in (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    )
    if given != entry.size * (2 if dtype == "complex64" else 1):
        raise CheckpointError(path, f"({dtype} {shape}) needs {math.prod(shape)} entries, has {given}", name)
    array = guarded(path, "an ONNX file", lambda: package.numpy_helper.to_array(tensor))
    if array.dtype != DTYPES[entry.dtype] or array.nbytes != entry.nbytes:
        raise CheckpointError(path, f"({dtype} {shape}) holds {array.dtype} {array.shape}", name)
    return entry, array.tobytes()


def _external(path: Path, name: str, tensor: Any) -> Span:
    """The bytes that a tensor names in a file of its folder; -1 of them where it does not say."""
    fields = {x.key: x.value for x in tensor.external_data}
    place = PurePosixPath(fields.get("location", ""))
    if not place.parts or place.is_absolute() or ".." in place.parts or "\\" in str(place) or "\0" in str(place):
        raise CheckpointError(path, f"lies in {str(place)!r}, expected a file inside the folder", name)
    target = path.parent.joinpath(*place.parts)
    steps = [path.parent.joinpath(*place.parts[: k + 1]) for k in range(len(place.parts))]
    if any(x.is_symlink() for x in steps):
        raise CheckpointError(path, f"lies in {str(place)!r}, which is a link", name)
    if not target.is_file():
        raise CheckpointError(path, f"lies in {str(place)!r}, which is missing", name)
    try:
        offset, nbytes = int(fields.get("offset", "0")), int(fields.get("length", "-1"))
    except ValueError:
        raise CheckpointError(path, "has an offset or a length that is no number", name) from None
    if not 0 <= offset < 2**60 or not -1 <= nbytes < 2**60:
        raise CheckpointError(path, f"has the offset {offset} and the length {nbytes}", name)
    return Span(target, offset, nbytes)

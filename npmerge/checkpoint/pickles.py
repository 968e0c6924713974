"""Pickles of strangers: a machine of our own for their opcodes. Nothing is imported or called: what it builds is plain data."""

import io
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, cast

from npmerge.checkpoint.errors import CheckpointError, short

MOST_BYTES = 64 * 2**20
"""Of one pickle, without the storages that lie beside it; a network of 30,000 tensors takes about 6 MB."""

MOST_STEPS = 3_000_000
"""Opcodes of one pickle; a tensor takes about 60."""

MOST_LINE = 65_536
MOST_BITS = 4_096
MOST_NAME = 1_024


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names.

    Attributes:
        name: with its module, such as "collections.OrderedDict".
    """

    name: str


@dataclass(frozen=True)
class Opaque:
    """An object that a pickle would have built and that is not read.

    Attributes:
        name: of its class.
    """

    name: str


@dataclass(eq=False, slots=True)
class Pairs:
    """A dictionary as it was written: keys of strangers are never hashed.

    Attributes:
        items: keys and values, in the order in which they were set.
    """

    items: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Stated:
    """An object whose state is kept, for formats that are read by it: a `call` gives one in the place of an `Opaque`.

    Attributes:
        name: of its class or function.
        arguments: that it was called with.
        state: that it was given last; None before.
    """

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


Call = Callable[[str, tuple[Any, ...]], Any]
"""The data that stand for calling the global of a name with arguments; raises KeyError for a name that is not on the list."""


class Source:
    """A file that gives at most so many bytes, and never allocates for bytes that are not there."""

    def __init__(self, path: Path, file: BinaryIO, most: int = MOST_BYTES):
        self._path, self._file = path, file
        begin = file.tell()
        self._left = min(most, file.seek(0, io.SEEK_END) - begin)
        file.seek(begin)

    def read(self, count: int) -> bytes:
        """See `io.BufferedIOBase.read`. Raises CheckpointError for more than is left."""
        if not 0 <= count <= self._left:
            raise CheckpointError(self._path, f"has a damaged or truncated pickle: {count} bytes needed, {self._left} left")
        self._left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        """See `io.BufferedIOBase.readline`. Raises CheckpointError for a line that is too long or does not end."""
        line = self._file.readline(min(MOST_LINE, self._left))
        self._left -= len(line)
        if not line.endswith(b"\n"):
            raise CheckpointError(self._path, "has a damaged pickle: a line that does not end")
        return line

    def tell(self) -> int:
        """The position in the file."""
        return self._file.tell()


def read_pickle(
    path: Path, file: BinaryIO, call: Call, persistent: Callable[[Any], Any] | None = None, *, most: int = MOST_BYTES
) -> Any:
    """What the pickle that begins at the file's position describes; the file then stands behind it.

    Args:
        path: for messages.
        file: that can be sought.
        call: knows what may be named; what it does not know is refused by name.
        persistent: the data that stand for a persistent id; None to refuse them.
        most: bytes that are read.

    Returns:
        Numbers, texts, bytes, lists, tuples, `Pairs`, `Global`, `Opaque` and what `call` and `persistent` gave.

    Raises:
        CheckpointError: a pickle that is damaged, too large, or names anything that is not on the list.
    """
    machine = _Machine(path, call, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], Source(path, file, most))):
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except CheckpointError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        text = str(error)[:200]
        raise CheckpointError(path, f"has a damaged pickle: {type(error).__name__} {text}".rstrip()) from None


class _Machine:
    """The stack, the marks on it and the memo of one pickle."""

    def __init__(self, path: Path, call: Call, persistent: Callable[[Any], Any] | None):
        self.path, self.call, self.persistent = path, call, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.steps = 0

    def charge(self, steps: int) -> None:
        """Count what has been done."""
        self.steps += steps
        if self.steps > MOST_STEPS:
            raise CheckpointError(self.path, f"has a pickle of more than {MOST_STEPS:,} steps")

    def step(self, name: str, argument: Any) -> None:
        """Carry out one opcode."""
        self.charge(1)
        if name in VALUES:
            if isinstance(argument, int) and argument.bit_length() > MOST_BITS:
                raise CheckpointError(self.path, f"has a pickle with a number of {argument.bit_length()} bits")
            self.stack.append(argument)
        elif name in MAKERS:
            self.stack.append(MAKERS[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.put(len(self.memo) if argument is None else argument)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in TUPLES:
            self.stack[len(self.stack) - TUPLES[name] :] = [tuple(self.last(TUPLES[name]))]
        elif name in OPCODES:
            OPCODES[name](self, argument)
        else:
            raise CheckpointError(self.path, f"has a pickle with the opcode {name}, which is not read")

    def put(self, place: int) -> None:
        """Remember what lies on top."""
        if not 0 <= place < 2**32:
            raise ValueError("a place of the memo that is out of range")
        self.memo[place] = self.stack[-1]

    def last(self, count: int) -> list[Any]:
        """The last values, which stay."""
        if len(self.stack) < count:
            raise IndexError("too few values")
        return self.stack[len(self.stack) - count :]

    def marked(self) -> list[Any]:
        """The values since the last mark, taken away."""
        begin = self.marks.pop()
        values = self.stack[begin:]
        del self.stack[begin:]
        return values

    def named(self, module: Any, name: Any) -> None:
        """Push a global."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a global without a name")
        if len(module) + len(name) > MOST_NAME:
            raise ValueError("a global with a name that is too long")
        self.stack.append(Global(f"{module}.{name}"))

    def add(self, values: list[Any]) -> None:
        """Append to the list on top; the content of other objects is not read."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)
        elif not isinstance(self.stack[-1], Opaque):
            raise TypeError("values for what is no list")

    def set(self, values: list[Any]) -> None:
        """Set items of the dictionary on top; the content of other objects is not read."""
        if isinstance(self.stack[-1], Pairs):
            self.stack[-1].items.extend(_paired(values))
        elif not isinstance(self.stack[-1], Opaque):
            raise TypeError("items for what is no dictionary")

    def reduce(self, arguments: Any) -> None:
        """Push what stands for calling the global on top, which goes."""
        what = self.stack.pop()
        if not isinstance(what, Global) or not isinstance(arguments, tuple):
            raise TypeError("a call of what is no global")
        self.charge(sum(_copied(x) for x in arguments[:2]))
        try:
            self.stack.append(self.call(what.name, arguments))
        except KeyError:
            raise CheckpointError(
                self.path,
                f"has a pickle that calls {short(what.name)}, which is refused: only tensors and plain data are read; "
                "of a whole module save the state dict: torch.save(module.state_dict(), PATH)",
            ) from None

    def build(self) -> None:
        """Keep the state that an object is given where it is read by it, else drop it: tensors and dictionaries need none."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Stated):
            self.stack[-1].state = state
        elif isinstance(self.stack[-1], (str, bytes, int, float, tuple, list, Global, type(None))):
            raise TypeError("a state for what has none")

    def frozen(self) -> None:
        """Push what stands for a frozen set, whose content is not read."""
        self.marked()
        self.stack.append(Opaque("frozenset"))

    def persist(self) -> None:
        """Push what a persistent id stands for."""
        if self.persistent is None:
            raise CheckpointError(self.path, "has a pickle with a persistent id where none is expected")
        self.stack.append(self.persistent(self.stack.pop()))

    def reduce_with_names(self) -> None:
        """As `reduce`; an object made with arguments by name is none that is read."""
        self.stack.pop()
        self.reduce(self.stack.pop())

    def stack_global(self) -> None:
        """Push the global whose module and name lie on top."""
        module, name = self.last(2)
        del self.stack[-2:]
        self.named(module, name)


def _copied(value: Any) -> int:
    """Entries that a call may copy."""
    return len(value.items if isinstance(value, Pairs) else value) if isinstance(value, (Pairs, list, tuple)) else 0


def _paired(values: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(values[::2], values[1::2], strict=True)


_VALUES = """
INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8
"""

VALUES: Final = frozenset(_VALUES.split())

MAKERS: Final[dict[str, Callable[[], Any]]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": Pairs,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: Opaque("set"),
}

TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}

OPCODES: Final[dict[str, Callable[[_Machine, Any], Any]]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine.marked(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "LIST": lambda machine, _: machine.stack.append(machine.marked()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.marked())),
    "DICT": lambda machine, _: machine.stack.append(Pairs(list(_paired(machine.marked())))),
    "FROZENSET": lambda machine, _: machine.frozen(),
    "APPEND": lambda machine, _: machine.add([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.add(machine.marked()),
    "ADDITEMS": lambda machine, _: machine.add(machine.marked()),
    "SETITEM": lambda machine, _: machine.set([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set(machine.marked()),
    "GLOBAL": lambda machine, argument: machine.named(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.stack_global(),
    "REDUCE": lambda machine, _: machine.reduce(machine.stack.pop()),
    "NEWOBJ": lambda machine, _: machine.reduce(machine.stack.pop()),
    "NEWOBJ_EX": lambda machine, _: machine.reduce_with_names(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.persist(),
}

"""Which of the objects in a file of PyTorch are its tensors: containers such as "state_dict" are found and said."""

from pathlib import Path
from typing import Any, Final

from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.pickles import Global, Opaque, Pairs
from npmerge.checkpoint.rebuilt import Storage, Strided

CONTAINERS: Final = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "params_ema",
    "params",
    "weights",
)
"""Names under which training scripts keep the tensors of a network, the likeliest first."""

MOST_DEPTH = 32
MOST_INNER = 4
MOST_TENSORS = 200_000
MOST_VISITS = 3_000_000
MOST_NAME = 1_024
MOST_SAID = 12
"""Of the things left out, named in a note."""


def find_tensors(path: Path, content: Any) -> tuple[list[tuple[str, Strided]], list[str]]:
    """The tensors of a file, with names whose parts are joined by dots, and notes about it.

    Args:
        path: for messages.
        content: what its pickle describes.

    Raises:
        CheckpointError: objects nested too deep or within themselves, names that are no text, tensors without number.
    """
    walk = _Walk(path)
    inner: list[str] = []
    while len(inner) < MOST_INNER and (chosen := walk.container(content)) is not None:
        inner.append(chosen[0])
        content = chosen[1]
    if isinstance(content, Strided):
        return [("tensor", content)], ["the file is one tensor without a name"]
    if isinstance(content, (Pairs, list, tuple)) and walk.holds(content, 0):
        walk.visit(content, "")
    notes = [f"container: {'.'.join(inner)}"] if inner else []
    if walk.left_out:
        more = f" and {walk.others - MOST_SAID} more" if walk.others > MOST_SAID else ""
        notes.append(f"left out: {', '.join(walk.left_out)}{more}")
    return walk.tensors, notes


class _Walk:
    """Goes through the objects of one file."""

    def __init__(self, path: Path):
        self.path = path
        self.tensors: list[tuple[str, Strided]] = []
        self.left_out: list[str] = []
        self.others = 0
        self._left = MOST_VISITS
        self._holds: dict[int, bool] = {}

    def container(self, content: Any) -> tuple[str, Any] | None:
        """The likeliest container in a dictionary; what lies beside it is left out."""
        if not isinstance(content, Pairs):
            return None
        named = {key: value for key, value in content.items if isinstance(key, str)}
        for name in CONTAINERS:
            if isinstance(named.get(name), Pairs) and self.holds(named[name], 0):
                for key, value in content.items:
                    if value is not named[name]:
                        self._leave("", key, value)
                return name, named[name]
        return None

    def holds(self, value: Any, depth: int) -> bool:
        """Whether there are tensors in it; every object is asked once, however often it is named."""
        if isinstance(value, Strided):
            return True
        if not isinstance(value, (Pairs, list, tuple)):
            return False
        known = self._holds.get(id(value))
        if known is not None:
            return known
        if depth > MOST_DEPTH:
            raise CheckpointError(self.path, f"has objects nested more than {MOST_DEPTH} deep")
        self._holds[id(value)] = False  # while it is asked about itself
        inner = [x for _, x in value.items] if isinstance(value, Pairs) else value
        found = any(self.holds(x, depth + 1) for x in inner)
        self._holds[id(value)] = found
        return found

    def visit(self, value: Any, prefix: str, depth: int = 0) -> None:
        """Collect the tensors below a value whose name, with a dot, is the prefix."""
        if depth > MOST_DEPTH:
            raise CheckpointError(self.path, "has objects nested too deep or within themselves", prefix)
        for key, child in value.items if isinstance(value, Pairs) else enumerate(value):
            self._left -= 1
            if self._left < 0:
                raise CheckpointError(self.path, f"holds more than {MOST_VISITS:,} objects")
            if not self.holds(child, depth):
                self._leave(prefix, key, child)
            elif type(key) not in (str, int) or len(prefix) + len(str(key)) > MOST_NAME:
                raise CheckpointError(self.path, f"has a tensor whose name is no text, or too long ({_kind(key)})", prefix)
            elif isinstance(child, Strided):
                self._add(f"{prefix}{key}", child)
            else:
                self.visit(child, f"{prefix}{key}.", depth + 1)

    def _add(self, name: str, tensor: Strided) -> None:
        if any("\ud800" <= x <= "\udfff" for x in name):
            raise CheckpointError(self.path, "is a name that is no text", name)
        if len(self.tensors) >= MOST_TENSORS:
            raise CheckpointError(self.path, f"holds more than {MOST_TENSORS:,} tensors")
        self.tensors.append((name, tensor))

    def _leave(self, prefix: str, key: Any, value: Any) -> None:
        self.others += 1
        if len(self.left_out) < MOST_SAID:
            name = prefix + (_plain(str(key)) if type(key) in (str, int) else f"[{_kind(key)}]")
            number = f" {value:g}" if type(value) in (int, float) and abs(value) < 1e15 else ""
            self.left_out.append(f"{_plain(name)} ({_kind(value)}{number})")


def _plain(text: str) -> str:
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return text.encode("ascii", "backslashreplace").decode()


def _kind(value: Any) -> str:
    if isinstance(value, (Global, Opaque)):
        return _plain(value.name)
    kinds: dict[type, str] = {Pairs: "dict", Strided: "tensor", Storage: "storage"}
    return kinds.get(type(value), type(value).__name__)

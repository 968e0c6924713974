"""Where in the user's own source an equation comes from."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax.extend.core import Jaxpr

LIBRARY = (os.sep + "site-packages" + os.sep, os.sep + "dist-packages" + os.sep, os.sep + "lib" + os.sep + "python3")
ACTIVATIONS = f"{os.sep}jax{os.sep}_src{os.sep}nn{os.sep}"
HERE = Path(__file__).resolve().parent
MACHINERY = [f"{os.sep}jax{os.sep}", f"{HERE.parent}{os.sep}"]
"""Parts of the paths of files that run networks rather than being one; `hide` adds to them."""


def hide(folder: Path) -> None:
    """Let no pin be told by a line of what lies in this folder."""
    if (part := f"{folder}{os.sep}") not in MACHINERY:
        MACHINERY.append(part)


def in_library(jaxpr: Jaxpr) -> bool:
    """Whether a nested jaxpr is the body of an installed function: its lines are of whoever happened to call it first."""
    return any(part in (jaxpr.debug_info.func_src_info or "") for part in LIBRARY)


def in_activation(info: Any) -> bool:
    """Whether an equation is one of an activation of JAX's own, inlined where the user calls it."""
    for frame in _frames(info):
        if ACTIVATIONS in frame.file_name:
            return True
        if not any(part in frame.file_name for part in LIBRARY):
            return False
    return False


def source_line(info: Any) -> str:
    """The innermost line of the user's own code behind an equation, as "folder/file.py:12 (function)"; "" if unknown."""
    frames = [f for f in _frames(info) if not any(part in f.file_name for part in MACHINERY)]
    own = [f for f in frames if not any(part in f.file_name for part in LIBRARY)]
    for frame in [*own, *frames]:  # of another library: better than nothing
        path = Path(frame.file_name)
        return f"{path.parent.name}/{path.name}:{frame.line_num} ({frame.function_name.rpartition('.')[2]})"
    return ""


def _frames(info: Any) -> Iterator[Any]:
    """The frames from the equation outwards, up to the call of `trace`."""
    traceback = getattr(info, "traceback", None)
    for frame in traceback.frames if traceback is not None else ():
        if Path(frame.file_name).parent == HERE:
            return
        yield frame

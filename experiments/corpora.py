"""Corpora of characters for small language models: Python's standard library as prose and as code, Lua, plays."""

import ast
import functools
import hashlib
import inspect
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.text import Text, content_of, random_windows, text_of

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
"""What all corpora are written in; tabs are four spaces, all else is left out."""

PLAYS = Path("../shared/data/text_en/tinyshakespeare.txt.xz")
LUA = Path("/usr/share/lua")
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "encodings", "pydoc_data", "turtledemo"}


def written(text: str) -> Text:
    """A text in the alphabet of all corpora, 90 % of it for training, then validation and test."""
    kept = text.replace("\t", "    ").encode("ascii", "ignore").decode()
    known = set(ALPHABET)
    return text_of("".join(c for c in kept if c in known), ALPHABET)


def python(kind: Callable[[str], str], group: int, groups: int, limit: int) -> Text:
    """Modules of Python's standard library in one order, every `groups`-th of them, up to a number of characters.

    Args:
        kind: what is made of the source of a module: `prose`, `code` or `documented`.
        group: which modules; those of two groups are others.
        groups: how many there are.
        limit: characters.

    Raises:
        ValueError: a library without sources.
    """
    found, size = [], 0
    for path in _modules()[group::groups]:
        found.append(kind(path.read_text(encoding="utf-8", errors="ignore")))
        size += len(found[-1]) + 1
        if size > limit:
            break
    if not size:
        raise ValueError(f"Python's standard library has no sources at {sysconfig.get_path('stdlib')}")
    return written("\n".join(found)[:limit])


def plays(path: Path, limit: int) -> Text:
    """Tiny Shakespeare. Raises ValueError where it is not found."""
    return written(content_of(path)[:limit])


def lua(folder: Path, limit: int) -> Text:
    """Sources of Lua under a folder, in one order.

    Raises:
        ValueError: none there.
    """
    paths = sorted(folder.rglob("*.lua"), key=lambda path: _place(path.relative_to(folder)))
    text = "\n".join(path.read_text(encoding="utf-8", errors="ignore") for path in paths)
    if not text:
        raise ValueError(f"no Lua under {folder}: Debian has some in lua-penlight, lua-busted, lua-socket and luarocks")
    return written(text[:limit])


def joined(texts: Sequence[Text]) -> Text:
    """One behind the other, in each part."""
    whole = hashlib.sha256("".join(text.sha256 for text in texts).encode()).hexdigest()
    return Text(whole, ALPHABET, *(np.concatenate(parts) for parts in zip(*(text[2:] for text in texts), strict=True)))


def mixed(texts: Sequence[Text], length: int, batch: int, *, seed: int) -> Iterator[tuple]:
    """Endless batches `(tokens, next tokens)`, of as many windows from the training part of each text."""
    each = [random_windows(t.train, length, batch // len(texts), seed=seed + 1000 * k) for k, t in enumerate(texts)]
    for parts in zip(*each, strict=True):
        yield tuple(np.concatenate(side) for side in zip(*parts, strict=True))


# ------------------------------------------------------------------------------------------------------ kinds of Python


def prose(source: str) -> str:
    """The docstrings of a module, without their indentation."""
    texts = (node.body[0].value.value for node in _with_docstring(_parsed(source)))
    return "\n\n".join(map(inspect.cleandoc, texts)) + "\n"


def code(source: str) -> str:
    """A module without docstrings and comments."""
    tree = _parsed(source)
    for node in _with_docstring(tree):
        node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree) + "\n"


def documented(source: str) -> str:
    """A module with docstrings and without comments, written as `code` is."""
    return ast.unparse(_parsed(source)) + "\n"


def _with_docstring(tree: ast.Module) -> Iterator[Any]:
    """The module, classes and functions that begin with a docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            match node.body[0]:
                case ast.Expr(value=ast.Constant(value=str())):
                    yield node


def _parsed(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes that a later Python refuses
        return ast.parse(source)


@functools.cache
def _modules() -> list[Path]:
    library = Path(sysconfig.get_path("stdlib"))
    return sorted(_sources(library), key=lambda path: _place(path.relative_to(library)))


def _sources(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and path.name not in SKIPPED:
            yield from _sources(path)
        elif path.suffix == ".py" and not path.name.startswith("__"):
            yield path


def _place(path: Path) -> str:
    """A place in an order that has nothing to do with names or folders."""
    return hashlib.sha256(path.as_posix().encode()).hexdigest()

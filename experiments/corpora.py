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

from experiments.text import Text, content_of, random_windows, text_of, tokens_of

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
"""What all corpora are written in; tabs are four spaces, all else is left out."""

PLAYS = Path("../shared/data/text_en/tinyshakespeare.txt.xz")
LUA = Path("/usr/share/lua")
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "encodings", "pydoc_data", "turtledemo"}


HELD_OUT = (4, 9)
"""Of ten files the one for validation and the one for tests: no part has a file in common with another."""


def written(text: str) -> Text:
    """A text in the alphabet of all corpora, 90 % of it for training, then validation and test."""
    return text_of(_known(text), ALPHABET)


def divided(files: Sequence[Path], kind: Callable[[str], str], limit: int) -> Text:
    """Files in the alphabet of all corpora, each in one part: of ten, eight for training, one each for validation and test.

    Args:
        files: in their order.
        kind: what is made of the content of each.
        limit: characters for training; the other parts have a quarter of that at most.
    """
    held_out = [files[place::10] for place in HELD_OUT]
    rest = [file for k, file in enumerate(files) if k % 10 not in HELD_OUT]
    parts = [_filled(some, kind, size) for some, size in zip((rest, *held_out), (limit, limit // 4, limit // 4), strict=True)]
    whole = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return Text(whole, ALPHABET, *(tokens_of(part, ALPHABET) for part in parts))


def _filled(files: Sequence[Path], kind: Callable[[str], str], limit: int) -> str:
    """What is made of files, one behind the other, up to a number of characters."""
    found, size = [], 0
    for file in files:
        if size > limit:
            break
        found.append(_known(kind(file.read_text(encoding="utf-8", errors="ignore"))))
        size += len(found[-1]) + 1
    return "\n".join(found)[:limit]


def _known(text: str) -> str:
    known = set(ALPHABET)
    return "".join(c for c in text.replace("\t", "    ").encode("ascii", "ignore").decode() if c in known)


def python(kind: Callable[[str], str], group: int, groups: int, limit: int) -> Text:
    """Modules of Python's standard library in one order, every `groups`-th of them, `divided`.

    Args:
        kind: what is made of the source of a module: `prose`, `code` or `documented`.
        group: which modules; those of two groups are others.
        groups: how many there are.
        limit: characters for training.

    Raises:
        ValueError: a library without sources.
    """
    files = _modules()[group::groups]
    if len(files) < 10:
        raise ValueError(f"Python's standard library has no sources at {sysconfig.get_path('stdlib')}")
    return divided(files, kind, limit)


def plays(path: Path, limit: int) -> Text:
    """Tiny Shakespeare. Raises ValueError where it is not found."""
    return written(content_of(path, "--plays")[:limit])


def lua(folder: Path, limit: int) -> Text:
    """Sources of Lua under a folder, in one order, `divided`.

    Raises:
        ValueError: fewer than ten files.
    """
    files = sorted(folder.rglob("*.lua"), key=lambda path: _place(path.relative_to(folder)))
    if len(files) < 10:
        raise ValueError(
            f"no ten files of Lua under {folder}: Debian has some in lua-penlight, lua-busted, lua-socket and luarocks; a "
            "folder of them goes with --lua"
        )
    return divided(files, str, limit)


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

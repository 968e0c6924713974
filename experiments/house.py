"""How large files and functions are, and how much of it is documented: `python -m experiments.house`."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from npmerge.reports.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Function:
    """One function or method.

    Attributes:
        name: with its file.
        lines: of all of it.
        code: lines without those of its docstring.
        positional: arguments that may be given by place, `self` and `cls` aside.
    """

    name: str
    lines: int
    code: int
    positional: int


@dataclass(frozen=True)
class Package:
    """What is in a package.

    Attributes:
        files: lines of each file that is not empty, by path.
        functions: all of them.
        public: names of public classes, functions and methods, and whether each has a docstring.
    """

    files: dict[str, int]
    functions: list[Function]
    public: dict[str, bool]


def measured(folder: Path) -> Package:
    """Every Python file below a folder."""
    files: dict[str, int] = {}
    functions: list[Function] = []
    public: dict[str, bool] = {}
    for path in sorted(folder.rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(folder.parent))
        if text:
            tree = ast.parse(text)
            files[name] = text.count("\n")
            functions += [_function(name, node) for node in ast.walk(tree) if isinstance(node, Definition)]
            public |= {f"{name}: {node.name}": bool(ast.get_docstring(node)) for node in _public(tree.body)}
    return Package(files, functions, public)


def spread(values: Sequence[int]) -> str:
    """Median, 90th percentile and the largest."""
    return f"{np.median(values):.0f}, {np.percentile(values, 90):.0f}, {max(values)}"


def _function(file: str, node: Definition) -> Function:
    lines, first = (node.end_lineno or node.lineno) - node.lineno + 1, node.body[0]
    words = (first.end_lineno or first.lineno) - first.lineno + 1 if ast.get_docstring(node) else 0
    places = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
    return Function(f"{file}: {node.name}", lines, lines - words, len([x for x in places if x not in ("self", "cls")]))


def _public(body: Sequence[ast.stmt]) -> Iterator[Definition | ast.ClassDef]:
    for node in body:
        if isinstance(node, Definition | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            yield from _public(node.body) if isinstance(node, ast.ClassDef) else ()


def main(
    folders: Annotated[list[str] | None, typer.Argument(help="Packages to measure; all of them if none.")] = None,
) -> None:
    """Print a table of the packages."""
    header = ("", "files", "lines", "lines a file", "functions", "lines a function", "without docstring", "documented")
    rows = []
    for name in folders or ("alignment", "npmerge", "experiments", "tests"):
        found = measured(ROOT / name)
        sizes, functions = list(found.files.values()), found.functions
        lines, code = spread([f.lines for f in functions]), spread([f.code for f in functions])
        share = f"{np.mean(list(found.public.values())):.1%} of {len(found.public)}"
        row = (str(len(sizes)), str(sum(sizes)), spread(sizes), str(len(functions)), lines, code, share)
        rows.append((name, *row))
    typer.echo("\n".join([*markdown_table(header, rows), "", "Median, 90th percentile and the largest."]))


if __name__ == "__main__":
    typer.run(main)

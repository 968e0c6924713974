"""The layers of the design, read off the imports of every file, and what importing the packages brings in."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import alignment
import npmerge

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("alignment", "npmerge")
LAZY = ["alignment", "npmerge", "npmerge.checkpoint", "npmerge.objectives"]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


class Import(NamedTuple):
    file: Path
    line: int
    module: str
    at_import: bool  # executed when the file is imported, not only when a function is called
    for_types: bool = False  # read by type checkers only

    @property
    def top(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def imports(source: str, file: Path) -> Iterator[Import]:
    """Every import of a file; `from a import b` counts as both `a` and `a.b`."""

    def visit(node: ast.AST, inside: bool, types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(file, node.lineno, alias.name, not inside, types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(file.parent.parts[: len(file.parent.parts) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [package, node.module or ""]))
            yield Import(file, node.lineno, module, not inside, types)
            yield from (Import(file, node.lineno, f"{module}.{alias.name}", not inside, types) for alias in node.names)
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        types = types or (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside, types)

    yield from visit(ast.parse(source), False, False)


ALL = [found for file in FILES for found in imports((ROOT / file).read_text(encoding="utf-8"), file)]


def refuse(bad: list[Import]) -> None:
    assert not bad, "\n".join(map(str, bad))


def test_the_parser_sees_every_kind_of_import():
    source = (
        "import a.b as c\nfrom d import e\nfrom . import f\nfrom ..g import h\ndef k():\n    import m\nclass C:\n    import n\n"
    )
    found = {(i.module, i.at_import) for i in imports(source, Path("npmerge/models/x.py"))}
    assert found == {
        *((m, True) for m in ("a.b", "d", "d.e", "npmerge.models", "npmerge.models.f", "npmerge.g", "npmerge.g.h", "n")),
        ("m", False),
    }


def test_files_were_found():
    assert {Path("alignment/tracing/trace.py"), Path("npmerge/cli.py"), Path("npmerge/models/mlp.py")} <= set(FILES)


def test_alignment_stands_alone():
    allowed = {"alignment", "jax", "jaxtyping", "numpy", "scipy", "optax", *sys.stdlib_module_names}
    refuse([i for i in ALL if i.file.parts[0] == "alignment" and i.top not in allowed])


def test_one_file_names_meshes():
    named = ("jax.sharding", "jax.experimental.shard_map", "jax.experimental.mesh_utils")
    refuse([i for i in ALL if i.file != Path("npmerge/sharding.py") and i.module.startswith(named)])


def test_nobody_imports_experiments_or_tests():
    refuse([i for i in ALL if i.top in ("experiments", "tests")])


def test_flax_lives_in_models_only():
    refuse([i for i in ALL if i.top == "flax" and i.file.parts[:2] != ("npmerge", "models")])


def test_only_main_imports_the_command_line():
    refuse([i for i in ALL if i.module.startswith("npmerge.cli") and i.file != Path("npmerge/__main__.py")])


def test_torch_lives_in_its_checkpoint_readers_only():
    def reader(file: Path) -> bool:
        return file.parts[:2] == ("npmerge", "checkpoint") and file.name.startswith("torch_")

    torch = [i for i in ALL if i.top in ("torch", "torchax", "torchvision")]
    refuse([i for i in torch if not reader(i.file) or i.at_import])


def test_slow_packages_are_imported_where_they_are_used():
    refuse([i for i in ALL if i.top in ("matplotlib", "sklearn") and i.at_import])


def package_of(file: Path) -> str:
    """The room of a file: its folder, or the file itself where it lies in none."""
    parts = file.with_suffix("").parts
    return ".".join(parts[:2]) if parts[-1] != "__init__" or len(parts) > 2 else parts[0]


def module_of(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """What is left of a graph after nodes without arrows out, then those without arrows in, are taken away until none is."""
    for _ in range(2):
        left = {a: bs - {a} for a, bs in arrows.items()}
        while ends := {a for a, bs in left.items() if not bs & set(left)}:
            left = {a: bs for a, bs in left.items() if a not in ends}
        arrows = {a: {b for b, cs in left.items() if a in cs} for a in left}
    return [[a, *sorted(bs & set(arrows))] for a, bs in sorted(arrows.items())]


def arrows(found: list[Import], name: Callable[[Path], str]) -> dict[str, set[str]]:
    """Which files, or rooms, import which. Names that a lazy package hands on are those of the file they come from."""
    homes = {module_of(file): file for file in FILES}
    drawn: dict[str, set[str]] = {name(file): set() for file in FILES}
    lazy = {package: vars(importlib.import_module(package))["_homes"] for package in LAZY}
    for i in found:
        package, _, last = i.module.rpartition(".")
        target = homes.get(lazy.get(package, {}).get(last, i.module))
        if target and i.file != target and module_of(i.file) not in LAZY and module_of(target) not in LAZY:
            drawn[name(i.file)].add(name(target))
    return drawn


def test_circles_are_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"], ["c", "b"]]


def test_no_file_imports_one_that_imports_it():
    assert circles(arrows([i for i in ALL if not i.for_types], module_of)) == []


def test_no_room_imports_one_that_imports_it():
    assert circles(arrows([i for i in ALL if not i.for_types], package_of)) == []


def test_every_room_is_told():
    rooms = {f"{file.parent}/" for file in FILES if len(file.parts) == 3}
    told = re.findall(r"`((?:alignment|npmerge)/\w+/)`", CONTRIBUTING.split("## The folders")[1])
    assert sorted(told) == sorted(rooms)


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after running some code."""
    program = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('MODULES', *sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = next(line for line in ran.stdout.splitlines() if line.startswith("MODULES"))
    return {name.split(".")[0] for name in listed.split()[1:]}


HELP = "sys.argv = ['npmerge', '--help']; import runpy; runpy.run_module('npmerge', run_name='__main__')"


FAST = {
    "import": "import npmerge",
    "help": HELP,
    "recipe": "import npmerge, npmerge.recipe, npmerge.checkpoint.stored",
    "commands": "import npmerge.commands.plan, npmerge.commands.inspect, npmerge.commands.compare",
}


@pytest.mark.parametrize("code", FAST.values(), ids=FAST)
def test_neither_import_nor_help_brings_in_slow_packages(code):
    after = modules_after(code)
    assert "npmerge" in after
    assert not after & {"jax", "flax", "optax", "scipy", "matplotlib", "sklearn", "torch", "torchax", "tensorflow"}


@pytest.mark.parametrize("package", LAZY)
def test_lazy_names_are_those_that_type_checkers_see(package):
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {a.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names}
    module = importlib.import_module(package)
    submodules = {name for name, home in seen.items() if home == package}
    assert vars(module)["_homes"] == {name: home for name, home in seen.items() if name not in submodules}
    assert {"TYPE_CHECKING", "make_lazy"}.isdisjoint(dir(module))
    assert set(module.__all__) - {"__version__"} <= set(seen) <= set(dir(module)) | submodules
    for name, home in seen.items():
        theirs = importlib.import_module(f"{home}.{name}" if name in submodules else home)
        assert getattr(module, name) is (theirs if name in submodules else getattr(theirs, name))


@pytest.mark.parametrize("first", ["import npmerge.repair", "import npmerge.evaluate", "from npmerge import Repaired, Path"])
def test_a_function_called_like_its_module_stays_the_function(first):
    code = f"{first}; import npmerge; from npmerge import evaluate, repair; assert repair is npmerge.repair"
    modules_after(f"{code}; assert callable(repair) and callable(evaluate) and evaluate is npmerge.evaluate")


def test_an_unknown_name_of_a_lazy_package():
    with pytest.raises(AttributeError, match=r"^module 'npmerge' has no attribute 'Averag': the nearest is 'Average'$"):
        npmerge.Averag  # noqa: B018
    with pytest.raises(AttributeError, match=r"has no attribute 'WeightMatching': it is alignment.WeightMatching$"):
        npmerge.WeightMatching  # noqa: B018
    with pytest.raises(AttributeError, match=r"^module 'alignment' has no attribute 'Average': it is npmerge.Average$"):
        alignment.Average  # noqa: B018
    with pytest.raises(AttributeError, match=r"has no attribute 'zzz'$"):
        npmerge.zzz  # noqa: B018
    assert not hasattr(npmerge, "__wrapped__")

import ast
from pathlib import Path

import pytest

from experiments.mutants.operators import applied, mutants
from experiments.mutants.page import page, reasons
from experiments.mutants.selection import FEW, Covered, covered

SOURCE = '''"""Words."""
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import never

KIND = int | None


def f(x: int = 3, *, flag: bool = True) -> "int | None":
    """More words than 2."""
    if x < 0 and flag:
        raise ValueError(f"{x + 1} is less than 0")
    check(x)
    for y in range(x):
        if y:
            continue
        x += 2.5 * y
    return -x if not flag else x
'''
FAULTS = {
    ("3", "4"),
    ("True", "False"),
    ("x < 0 and flag", "x < 0 or flag"),
    ("x < 0", "x <= 0"),
    ("0", "1"),
    ("raise ValueError(f'{x + 1} is less than 0')", ""),
    ("check(x)", ""),
    ("if y: continue", "if not y: continue"),
    ("continue", "break"),
    ("x += 2.5 * y", "x -= 2.5 * y"),
    ("x += 2.5 * y", ""),
    ("2.5 * y", "2.5 / y"),
    ("2.5", "5.0"),
    ("return -x if not flag else x", "return None"),
    ("-x if not flag else x", "-x"),
    ("-x if not flag else x", "x"),
    ("-x", "x"),
    ("not flag", "flag"),
}


def test_faults_of_a_file():
    found = list(mutants("a.py", SOURCE))
    assert {(m.before, m.after) for m in found} == FAULTS
    assert len(found) == len(FAULTS)
    assert {m.line for m in found if m.before == "2.5"} == {18}


def linenos(tree):
    return {node.lineno for node in ast.walk(tree) if hasattr(node, "lineno")}


def test_what_zip_is_asked_to_check_is_no_fault():
    assert not list(mutants("a.py", "for a, b in zip(x, y, strict=True):\n    pass\n"))
    assert list(mutants("a.py", "f(strict_too=True)\n"))


def test_faults_alike_are_told_apart_by_their_lines():
    first, second = (m for m in mutants("a.py", "a = f(1)\nb = g(1)\n") if m.after == "2")
    assert first.name == "a.py: `1` as `2` in `a = f(1)`"
    assert second.name == "a.py: `1` as `2` in `b = g(1)`"


def test_a_fault_changes_one_node_and_no_line_number():
    plain = ast.parse(SOURCE)
    for mutant in mutants("a.py", SOURCE):
        tree = applied(mutant, SOURCE)
        compile(tree, "a.py", "exec")
        changed = [a for a, b in zip(ast.unparse(plain).splitlines(), ast.unparse(tree).splitlines(), strict=False) if a != b]
        assert changed, mutant
        if mutant.after:
            assert len(changed) == 1
        assert {n.lineno for n in ast.walk(tree) if hasattr(n, "lineno")} <= {
            n.lineno for n in ast.walk(plain) if hasattr(n, "lineno")
        }


def test_tests_of_a_line_and_those_that_come_first():
    mutant = next(m for m in mutants("alignment/maps.py", SOURCE) if m.before == "2.5")
    mirror = [f"tests/alignment/test_maps.py::test_a[{k}]" for k in range(5)]
    others = [f"tests/alignment/test_zoo.py::test_{k}" for k in range(50)]
    lines = {"alignment/maps.py": {18: frozenset([*mirror, *others]), 11: frozenset(["tests/b.py::test_b"])}}
    tests = Covered(lines, {"alignment/maps.py": frozenset(["tests/b.py::test_b", *mirror])})
    assert tests.tests(mutant) == sorted([*mirror, *others])
    few = tests.few(mutant)
    assert len(few) == FEW
    assert set(few[:2]) < set(mirror)
    assert sum(test in mirror for test in few) == 2
    imported = next(m for m in mutants("alignment/maps.py", SOURCE) if m.before == "3")
    assert tests.tests(imported) == sorted(["tests/b.py::test_b", *mirror])


def test_faults_of_the_packages_compile():
    root = Path(__file__).parents[2]
    source = (root / "alignment/maps.py").read_text(encoding="utf-8")
    for mutant in mutants("alignment/maps.py", source):
        compile(applied(mutant, source), mutant.file, "exec")


def test_without_a_record_of_coverage(tmp_path):
    with pytest.raises(ValueError, match=r"\.coverage is not there: run the suite with --cov=alignment"):
        covered(tmp_path / ".coverage", [], tmp_path)


def test_the_page_counts_by_room_and_tells_what_is_left():
    rows = [
        {"file": file, "line": 3, "name": f"{file}: `a` as `b`", "outcome": outcome}
        for file, outcome in (
            ("alignment/maps.py", "killed"),
            ("alignment/methods/cca.py", "survived"),
            ("alignment/methods/zipit.py", "timed out"),
            ("alignment/methods/scale.py", "survived"),
        )
    ]
    text = page(rows, {"alignment/methods/cca.py: `a` as `b`": "both are even"}, "by hand")
    assert "| alignment/methods | 3 | 1 | 1 | 2 | 33.3% |" in text
    assert "| all | 4 | 2 | 1 | 2 | 50.0% |" in text
    assert "- line 3 of alignment/methods/cca.py: `a` as `b`: both are even" in text
    assert "- line 3 of alignment/methods/scale.py: `a` as `b`: no reason is known" in text


def test_reasons_are_of_faults_that_there_are():
    root = Path(__file__).parents[2]
    for name in reasons():
        file = name.split(":")[0]
        assert name in {m.name for m in mutants(file, (root / file).read_text(encoding="utf-8"))}

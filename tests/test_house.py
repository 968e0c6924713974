"""How large files and functions of the packages may be."""

import pytest

from experiments.house import ROOT, Package, measured

MOST_LINES, MOST_CODE, MOST_ARGUMENTS = 400, 60, 5


@pytest.fixture(scope="module", params=["alignment", "npmerge", "experiments"])
def package(request) -> Package:
    return measured(ROOT / request.param)


def test_files_are_short(package):
    assert not {name: lines for name, lines in package.files.items() if lines > MOST_LINES}


def test_functions_are_short(package):
    assert not [f for f in package.functions if f.code > MOST_CODE]


def test_functions_take_few_arguments_by_place(package):
    assert not [f for f in package.functions if f.positional > MOST_ARGUMENTS]


def test_every_public_name_is_documented(package):
    assert not [name for name, documented in package.public.items() if not documented]


SOURCE = '''class A:
    """Words."""

    def f(self, a, b=1, *, c):
        """One.

        More.
        """
        return a


def g():
    pass


def _h():
    pass
'''


def test_what_is_measured(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.py").write_text(SOURCE, encoding="utf-8")
    found = measured(tmp_path / "p")
    assert found.files == {"p/a.py": 17}
    assert [(f.name, f.lines, f.code, f.positional) for f in found.functions if f.name.endswith("f")] == [
        ("p/a.py: f", 6, 2, 2)
    ]
    assert found.public == {"p/a.py: A": True, "p/a.py: f": True, "p/a.py: g": False}

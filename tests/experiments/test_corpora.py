"""Corpora: what is made of the sources of Python, and that no two texts share a module."""

import inspect
import re
import textwrap

import numpy as np
import pytest

from experiments import corpora
from experiments.text import random_windows, spread_windows

SOURCE = '''"""About it."""

# a remark
def f(x):
    """Only words."""

class A:
    """A class.

    With more.
    """

    name = "it's"

    def g(self):
        """Go."""
        return 'a string'  # another remark
'''


def test_prose_and_code_are_parts_of_what_is_documented():
    assert corpora.prose(SOURCE) == "About it.\n\nOnly words.\n\nA class.\n\nWith more.\n\nGo.\n"
    code, documented = corpora.code(SOURCE), corpora.documented(SOURCE)
    assert "pass" in code and "a string" in code and not any(x in code for x in ("words", "About", "class.", "remark", "Go."))
    assert "Only words." in documented and "a string" in documented and "remark" not in documented
    compile(code, "code", "exec")


def test_code_of_a_real_module_runs():
    found = {}
    exec(compile(corpora.code(inspect.getsource(textwrap)), "code", "exec"), found)
    assert found["dedent"]("  a\n  b") == "a\nb" and found["TextWrapper"].__doc__ is None


def test_groups_have_other_modules():
    paths = corpora._modules()
    assert len(paths) > 100 and len(set(paths)) == len(paths)
    assert not [path for path in paths if "test" in path.parts or "site-packages" in path.parts]
    one, two = (corpora.python(corpora.documented, k, 4, 3000) for k in (0, 1))
    assert one.sha256 != two.sha256 and one.alphabet == two.alphabet
    assert len(one.train) == 3000 and 0 < len(one.validation) <= 750 and 0 < len(one.test) <= 750


def test_no_file_is_in_two_parts(tmp_path):
    """Eight of ten files are for training; what is cut off is cut off at the end of a part."""
    files = [tmp_path / f"{k:02d}.py" for k in range(30)]
    for k, file in enumerate(files):
        file.write_text(f"<{k:02d}>" * 5)
    found = corpora.divided(files, str, 10_000)
    parts = ["".join(found.alphabet[k] for k in part) for part in found[2:]]
    seen = [{int(number) for number in re.findall(r"<(\d+)>", part)} for part in parts]
    assert seen == [{k for k in range(30) if k % 10 not in (4, 9)}, {4, 14, 24}, {9, 19, 29}]
    short = corpora.divided(files, str, 100)
    assert [len(part) for part in short[2:]] == [100, 25, 25] and short.sha256 != found.sha256


def test_what_is_written_has_the_characters_of_the_alphabet_alone():
    found = corpora.written("a\tb\u00e9\x0c\n" * 20)
    assert "".join(found.alphabet[k] for k in found.train[:7]) == "a    b\n"
    assert len(corpora.ALPHABET) == len(set(corpora.ALPHABET)) == 96


def test_lua_and_plays_are_read_or_missed(tmp_path):
    with pytest.raises(ValueError, match=r"no ten files of Lua under .*--lua"):
        corpora.lua(tmp_path, 100)
    with pytest.raises(ValueError, match=r"no text at .*--plays"):
        corpora.plays(tmp_path / "none.txt", 100)
    (tmp_path / "sub").mkdir()
    for k in range(10):
        (tmp_path / "sub" / f"{k}.lua").write_text("local x = 1\n" * 20)
    (tmp_path / "plays.txt").write_text("Enter KING\n" * 20)
    assert len(corpora.lua(tmp_path, 100).train) == 100
    assert len(corpora.plays(tmp_path / "plays.txt", 100).test) == 5


def test_batches_are_mixed_in_equal_parts():
    a, b = corpora.written("ab" * 100), corpora.written("yz" * 100)
    inputs, targets = next(corpora.mixed([a, b], 4, 6, seed=0))
    assert inputs.shape == targets.shape == (6, 4)
    assert {a.alphabet[k] for k in inputs[:3].ravel()} == {"a", "b"} and {a.alphabet[k] for k in targets[3:].ravel()} == {
        "y",
        "z",
    }
    np.testing.assert_array_equal(inputs[:3], next(random_windows(a.train, 4, 3, seed=0))[0])
    both = corpora.joined([a, b])
    np.testing.assert_array_equal(both.train, np.concatenate([a.train, b.train]))
    assert both.sha256 not in (a.sha256, b.sha256)


def test_windows_are_spread_over_the_whole_text():
    tokens = np.arange(103)
    batches = spread_windows(tokens, 5, 4, limit=3)
    starts = np.concatenate([inputs[:, 0] for inputs, _ in batches])
    assert len(batches) == 3 and starts[0] == 0 and starts[-1] == 97 and np.diff(starts).min() >= 8
    for inputs, targets in batches:
        assert inputs.shape == (4, 5) and (targets == inputs + 1).all()
    assert len(spread_windows(tokens, 5, 4, limit=99)) == 5
    with pytest.raises(ValueError, match="103 characters has no batch"):
        spread_windows(tokens, 50, 4, limit=1)

"""Tables, figures and the folder that is written whole or not at all."""

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest

from npmerge import Path as LossPath
from npmerge.reports.drawing import ABREAST, Curve, draw_curves, draw_paths, new_figure, one_legend
from npmerge.reports.folder import OutputFolder, write_report
from npmerge.reports.page import Figure, Page, section
from npmerge.reports.tables import json_text, markdown_table


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def fill(out: Path, *, force: bool = False) -> None:
    with OutputFolder(out, force=force) as folder:
        (folder / "a.txt").write_text("new")
        (folder / "b.txt").write_text("new")


@pytest.mark.parametrize("where", ["new", "deep/er", "empty"])
def test_files_appear_in_the_folder(tmp_path, where):
    (tmp_path / "empty").mkdir()
    out = tmp_path / where
    fill(out)
    assert names(out) == {"a.txt", "b.txt"}
    assert not [name for name in names(out.parent) if name.startswith(".")]


def test_nothing_is_there_before_the_end(tmp_path):
    out = tmp_path / "out"
    with OutputFolder(out, force=False) as folder:
        (folder / "a.txt").write_text("new")
        assert not out.exists()
    assert names(out) == {"a.txt"}


@pytest.mark.parametrize("exists", [False, True])
def test_nothing_is_left_behind_when_the_body_raises(tmp_path, exists):
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    with pytest.raises(RuntimeError, match="halfway"), OutputFolder(out, force=False) as folder:
        (folder / "a.txt").write_text("half")
        raise RuntimeError("halfway")
    assert names(tmp_path) == ({"out"} if exists else set())
    assert not exists or names(out) == set()


def test_existing_files_are_refused_and_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("old")
    with pytest.raises(ValueError, match=r"exists and has files in it: choose another folder with --out, or use --force"):
        OutputFolder(tmp_path, force=False)
    assert names(tmp_path) == {"mine.txt"}


def test_force_replaces_its_files_and_keeps_the_others(tmp_path):
    for name in ("mine.txt", "a.txt"):
        (tmp_path / name).write_text("old")
    (tmp_path / "folder").mkdir()
    fill(tmp_path, force=True)
    assert names(tmp_path) == {"mine.txt", "a.txt", "b.txt", "folder"}
    assert (tmp_path / "mine.txt").read_text() == "old"
    assert (tmp_path / "a.txt").read_text() == "new"


def test_force_removes_its_own_files_of_an_earlier_run(tmp_path):
    for name in ("mine.png", "old.png", "a.txt"):
        (tmp_path / name).write_text("old")
    with OutputFolder(tmp_path, force=True, own=("old.png", "a.txt", "never.png")) as folder:
        (folder / "a.txt").write_text("new")
    assert names(tmp_path) == {"mine.png", "a.txt"}


def test_nothing_is_written_where_a_folder_has_the_name_of_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "b.txt").mkdir()
    with pytest.raises(ValueError, match=r"cannot write to .*: b.txt is a folder there"):
        fill(tmp_path, force=True)
    assert names(tmp_path) == {"a.txt", "b.txt"}
    assert (tmp_path / "a.txt").read_text() == "old"


def test_force_keeps_everything_when_the_body_raises(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), OutputFolder(tmp_path, force=True) as folder:
        (folder / "a.txt").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == {"a.txt"}
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize("force", [False, True])
def test_a_file_in_the_way(tmp_path, force):
    (tmp_path / "file").write_text("old")
    with pytest.raises(ValueError, match="file is a file: expected a folder to write to"):
        OutputFolder(tmp_path / "file", force=force)
    with pytest.raises(ValueError, match=r"cannot write to .*below: "):
        OutputFolder(tmp_path / "file" / "below", force=force)
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == {"file"}


def test_a_parent_that_cannot_be_written(tmp_path, monkeypatch):
    """Root may write anywhere, so the refusal is played."""

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(ValueError, match=r"cannot write to .*out: Permission denied"):
        OutputFolder(tmp_path / "out", force=False)
    assert names(tmp_path) == set()


def test_a_markdown_table():
    assert markdown_table(["name", "a", "b"], [["x", "1", "2"], ["y", "3", "4"]]) == [
        "| name | a | b |",
        "|---|---:|---:|",
        "| x | 1 | 2 |",
        "| y | 3 | 4 |",
    ]


def test_a_report_with_a_figure(tmp_path):
    drawing, (left, right) = new_figure(2)
    path = LossPath(np.array([0, 0.5, 1]), np.array([1.0, 2.0, 1.0]), np.zeros(3))
    other = path._replace(loss=np.array([1.0, 4.0, 3.0]))
    draw_paths(left, {"unaligned": [path, other], "matched": [path]}, baseline="unaligned")
    curves = [
        Curve("learned", [1, 10], [2.0, 3.0], [0.1, 0.2]),
        Curve("control", [1, 10], [1.0, 2.0], [0.1, 0.2], control=True),
    ]
    draw_curves(right, curves, levels={"ensemble": 4.0})
    by_name = {line.get_label(): line for line in left.get_lines()}
    np.testing.assert_allclose(by_name["unaligned"].get_ydata(), [1.0, 3.0, 2.0])
    assert by_name["unaligned"].get_color() == "black"
    assert right.get_xscale() == "log"
    assert {text.get_text() for text in right.get_legend().get_texts()} == {"learned", "control", "ensemble"}
    page = Page("Title", (section("", "± é", Figure("curves", "Curves", "Two of them.", lambda: drawing)),))
    write_report(tmp_path, page=page, summary={"rows": [1.5]})
    assert names(tmp_path) == {"report.md", "report.html", "summary.json", "curves.png"}
    said = "# Title\n\n± é\n\n![Curves](curves.png)\n\nTwo of them.\n"
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == said
    assert json.loads((tmp_path / "summary.json").read_text()) == {"rows": [1.5]}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_report_holds_no_nan(tmp_path):
    with pytest.raises(ValueError, match="what was measured is not finite at 'rows/1/loss'"):
        write_report(tmp_path, page=Page("", ()), summary={"rows": [{"loss": 1.0}, {"loss": float("nan")}]})
    assert not names(tmp_path)


def test_null_stands_for_what_is_not_finite():
    found = json.loads(json_text({"a": [1.5, math.nan, (math.inf, 2)], "b": {"c": -math.inf, "d": "nan", "e": True}}))
    assert found == {"a": [1.5, None, [None, 2]], "b": {"c": None, "d": "nan", "e": True}}


def test_many_axes_stand_in_rows():
    drawing, axes = new_figure(5)
    assert len(axes) == len(drawing.axes) == 5
    assert len({round(ax.get_position().y0, 3) for ax in axes}) == 2 and drawing.get_size_inches()[0] == 6.5 * ABREAST


def test_a_name_looks_the_same_on_each_of_a_figures_axes():
    drawing, axes = new_figure(2)
    names = ("average", "learned", "control")
    for ax, shown in zip(axes, (names, names[1:]), strict=True):
        draw_curves(ax, [Curve(name, [1, 10], [2.0, 3.0], [0.1, 0.2]) for name in shown], names=names)
    looks = [{bars.get_label(): bars.lines[0] for bars in ax.containers} for ax in axes]
    for name in names[1:]:
        one, other = (found[name] for found in looks)
        assert (one.get_color(), one.get_marker()) == (other.get_color(), other.get_marker())
    assert len({line.get_color() for line in looks[0].values()}) == len(names)
    one_legend(drawing, axes)
    assert [text.get_text() for text in drawing.legends[0].get_texts()] == list(names)
    assert all(ax.get_legend() is None for ax in axes)

"""The notebooks of the tutorials run from beginning to end, with their small settings, and show what they promise."""

import os
import re
import sys
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="the tutorials run with the extra docs")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

FOLDER = Path(__file__).parents[2] / "docs" / "tutorials"
NAMES = ["different_seeds", "fine_tunes", "own_loss"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of the kernel's client


def read(name: str):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def executed(name: str, folder: Path, monkeypatch) -> tuple[str, int]:
    """What a notebook prints, and how many figures it shows."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # where `npmerge` is
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    notebook = read(name)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    return printed, sum("image/png" in output.get("data", {}) for output in outputs)


def test_all_notebooks_are_tried():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_they_are_committed_small_without_outputs_and_with_words_before_each_step(name):
    cells = read(name).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    assert sum("TINY = True" in cell.source for cell in cells) == 1
    kinds = [cell.cell_type for cell in cells]
    assert kinds[0] == "markdown"
    assert kinds.count("markdown") >= 0.5 * kinds.count("code")


def test_networks_of_different_seeds_can_be_averaged(tmp_path, monkeypatch):
    printed, figures = executed("different_seeds", tmp_path, monkeypatch)
    losses = {name.strip(): float(loss) for name, loss in re.findall(r"^(.*?) +accuracy [\d.]+  loss ([\d.]+)$", printed, re.M)}
    assert losses["average, activation matching"] < losses["average, unaligned"]
    before, after = (float(x) for x in re.search(r"barrier: ([\d.]+) before, ([-\d.]+) after", printed).groups())
    assert after < before
    assert {"report.md", "summary.json", "a.safetensors"} <= set(printed.split())
    assert figures == 2


def test_a_loss_of_ones_own_is_learned_beside_the_control(tmp_path, monkeypatch):
    printed, figures = executed("own_loss", tmp_path, monkeypatch)
    costs = dict(re.findall(r"^([\w -]+?) +cost of a digit ([\d.]+)", printed, re.M))
    assert list(costs) == ["network 1", "network 2", "average", "learned", "fine-tuned"]
    assert float(costs["learned"]) < float(costs["average"])
    assert float(costs["fine-tuned"]) < float(costs["average"])
    assert figures == 1


def test_fine_tunes_of_hugging_face_are_merged_by_recipes(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="the fine-tunes are made with the extra hf")
    printed, figures = executed("fine_tunes", tmp_path, monkeypatch)
    found = re.findall(r"^(\w+) +code [\d.]+  prose [\d.]+  mean ([\d.]+)$", printed, re.M)
    means = {name: float(mean) for name, mean in found}
    assert list(means) == ["base", "code", "prose", "average", "learned", "control"]
    assert means["average"] < max(means["code"], means["prose"])
    assert means["learned"] < means["average"] + 0.01
    assert "report.html" in printed.split()
    assert figures == 1

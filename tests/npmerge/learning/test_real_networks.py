"""Two strangers' ResNet-20 by one recipe. The files are not part of the repository; without them the test is skipped."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.published_resnets import load_test_set
from npmerge.checkpoint.names import load_named
from tests.npmerge.learning.digits import learn, merge, recipe

DATA = Path(__file__).parents[4] / "shared" / "data"
FILES = [DATA / "resnet_cifar10" / f"resnet20_{name}.th" for name in ("zheng", "bognev")]
IMAGES = DATA / "cifar10"


@pytest.mark.skipif(not (FILES[0].exists() and IMAGES.exists()), reason="needs ../shared/data")
def test_published_networks_are_learned_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = load_test_set(IMAGES, 32)
    np.savez(tmp_path / "images.npz", inputs=images.inputs, labels=images.labels)
    block = learn(data="images.npz", held_out=0.5, granularity="per_tensor", steps=1, every=1)
    text = recipe(learn=block)
    for name, file in zip("ab", FILES, strict=True):
        text = text.replace(f"{name}.safetensors", str(file))
    folder = merge(tmp_path, "out", text)
    config, _ = load_named(folder)
    assert config == load_named(FILES[0])[0]
    history = json.loads((folder / "history.json").read_text())
    rows = history["evaluation"]["networks"]
    assert min(rows[file.name]["accuracy"] for file in FILES) >= 0.75  # of 16 images; published: 0.92
    assert list(history["shares"]["modules"])[:3] == ["conv", "norm", "blocks/0/conv1"]
    report = (folder / "report.md").read_text()
    for text in ("| module | in the files |", "| conv | module.conv1 |", "| blocks/3/conv1 | module.layer2.0.conv1 |"):
        assert text in report
    assert "held-out objective of the fit is with the statistics of each batch" in report
    assert all(abs(sum(x) - 1) < 1e-5 for x in history["shares"]["modules"].values())

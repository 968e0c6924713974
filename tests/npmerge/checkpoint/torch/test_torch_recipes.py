"""Recipes that learn with modules of PyTorch, which nobody has written in JAX."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from npmerge.reports.style import Drawn
from tests.npmerge.checkpoint.torch.modules import case, fill, load_file, save_file, torch
from tests.npmerge.learning.digits import merge, recipe, run

FOLDERS = {"GPT-2": "GPT2LMHeadModel", "BERT": "BertForSequenceClassification"}
USER = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Linear(width, 4)

    def forward(self, x):
        y = self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return {"loss": None, "scores": y}

def network(width=6):
    return Net(width), "scores"

def fails(): raise KeyError("no such size")
def number(): return 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working directory, without figures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("npmerge.reports.folder.drawn", lambda _: Drawn(b"", "<svg/>"))
    return tmp_path


def learn(**given) -> dict:
    plain = {"data": "x.npz", "held_out": 0.25, "granularity": "per_tensor", "steps": 8, "every": 4, "batch_size": 16}
    return {**plain, "optimizer": {"name": "adam", "arguments": {"learning_rate": 0.2}}, **given}


def fine_tunes(module, save) -> None:
    """Two models that have moved from one start, the second further."""
    start = {name: x.clone() for name, x in module.state_dict().items()}
    for name, far in (("a.safetensors", 0.1), ("b.safetensors", 0.5)):
        with torch.no_grad():
            for key, x in module.state_dict().items():
                x.copy_(start[key] * (1 + far * torch.rand_like(x.float()) * (x.ndim > 1)) if x.is_floating_point() else x)
        save(name)


def of_transformers(folder: Path, name: str):
    """Two folders of one class, and examples with the labels that the first gives."""
    found = case(name)
    pages = found.module.save_pretrained
    fine_tunes(found.module, lambda file: pages(folder / file))
    module = type(found.module).from_pretrained(folder / "a.safetensors").eval()
    x = torch.randint(0, 19, (48, 6))
    with torch.no_grad():
        labels = module(x).logits.argmax(-1)
    np.savez(folder / "x.npz", inputs=x.numpy(), labels=labels.numpy())
    return module


@pytest.mark.parametrize("name", FOLDERS)
def test_two_fine_tunes_of_a_folder_of_transformers_are_learned_over(here, name):
    module = of_transformers(here, name)
    align = {"method": "weight_matching", "architecture": "hf"}
    folder = merge(here, "out", recipe(learn=learn(architecture="hf"), align=align))
    rows = json.loads((folder / "history.json").read_text())["evaluation"]["networks"]
    assert rows["learned"]["loss"] < rows["start"]["loss"]
    written, stored = load_file(folder / "model.safetensors"), load_file(here / "a.safetensors" / "model.safetensors")
    assert {key: (x.shape, x.dtype) for key, x in written.items()} == {key: (x.shape, x.dtype) for key, x in stored.items()}
    assert {"torch", "torchax", "transformers"} < set(json.loads((folder / "npmerge.json").read_text())["versions"])
    again = type(module).from_pretrained(folder).eval()  # a folder as transformers has them
    inputs = torch.from_numpy(np.load("x.npz")["inputs"])
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(
            again(inputs).logits.flatten(0, -2), torch.from_numpy(np.load("x.npz")["labels"]).flatten()
        )
    assert np.isfinite(float(loss))
    table = run("evaluate", "out", "--data", "x.npz", "--architecture", "hf", "--json")
    assert json.loads(table)["models"]["out"]["loss"] == pytest.approx(float(loss), abs=1e-4)


def of_user(folder: Path):
    """Files of a module of the user, with statistics, in half precision."""
    (folder / "nets_of_torch.py").write_text(USER)
    sys.modules.pop("nets_of_torch", None)
    sys.path.insert(0, str(folder))
    try:
        import nets_of_torch
    finally:
        sys.path.remove(str(folder))
    torch.manual_seed(0)
    module, _ = nets_of_torch.network()
    fill(module)
    fine_tunes(module, lambda file: save_file(module.half().state_dict(), folder / file))
    x = torch.randn(48, 3, 6, 6)
    module.float().load_state_dict(load_file(folder / "a.safetensors"))
    with torch.no_grad():
        np.savez(folder / "x.npz", inputs=x.numpy(), labels=module(x)["scores"].argmax(-1).numpy())
    return module


def test_a_module_of_the_user_is_learned_with_and_its_statistics_are_estimated_anew(here):
    module = of_user(here)
    folder = merge(here, "out", recipe(learn=learn(architecture="torch:nets_of_torch:network")))
    rows = json.loads((folder / "history.json").read_text())["evaluation"]["networks"]
    assert rows["learned"]["loss"] < rows["start"]["loss"]
    written, stored = load_file(folder / "model.safetensors"), load_file(here / "a.safetensors")
    assert {key: (x.shape, x.dtype) for key, x in written.items()} == {key: (x.shape, x.dtype) for key, x in stored.items()}
    assert not torch.equal(written["norm.running_mean"], (stored["norm.running_mean"]))
    module.load_state_dict(written, strict=True)
    assert "nets_of_torch.py" in json.loads((folder / "npmerge.json").read_text())["inputs"]


FAULTS = {
    "a function that raises": (
        "torch:nets_of_torch:fails",
        r"nets_of_torch:fails raises KeyError: .* return a torch\.nn\.Module",
    ),
    "no module": ("torch:nets_of_torch:number", r"nets_of_torch:number returns int: .* must return a torch\.nn\.Module"),
    "no function": ("torch:nets_of_torch:netwrk", r"unknown function of nets_of_torch 'netwrk': the nearest is 'network'"),
    "arguments": ({"name": "torch:nets_of_torch:network", "arguments": {"widht": 3}}, "unknown argument of .* 'widht'"),
    "another network": (
        {"name": "torch:nets_of_torch:network", "arguments": {"width": 7}},
        r"not the tensors of nets_of_torch:network: of another shape: conv\.bias \(got \(6,\), expected \(7,\)\), .* 2 more",
    ),
    "a module in the place of functions": (
        "nets_of_torch:network",
        r"nets_of_torch:network returns a torch\.nn\.Module: write torch:nets_of_torch:network$",
    ),
    "no folder": ("hf", r"hf is for folders with a config\.json, as save_pretrained writes them: there is none"),
    "unknown": ("hff", r"unknown architecture 'hff': the nearest is 'hf', .*, module:function or torch:module"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told_with_the_line(here, fault):
    of_user(here)
    architecture, message = FAULTS[fault]
    with pytest.raises(ValueError, match=rf"^recipe\.yml:\d+: learn\.architecture: .*{message}"):
        merge(here, "out", recipe(learn=learn(architecture=architecture)))
    assert not (here / "out").exists()


FOLDER_FAULTS = {
    "a class that there is not": (
        {"class": "GPT2LMHeadModl"},
        r"no model of the class 'GPT2LMHeadModl': the nearest is 'GPT2LMHeadM",
    ),
    "tensors of another class": (
        {"class": "BertModel"},
        r"not the tensors of BertModel: missing: .*; unexpected: transformer\.",
    ),
    "an argument that there is not": ({"klass": "GPT2Model"}, "unknown argument of hf 'klass': the nearest is 'class'"),
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_faults_of_folders_are_told_with_the_line(here, fault):
    of_transformers(here, "GPT-2")
    arguments, message = FOLDER_FAULTS[fault]
    with pytest.raises(ValueError, match=rf"^recipe\.yml:\d+: learn\.architecture: .*{message}"):
        merge(here, "out", recipe(learn=learn(architecture={"name": "hf", "arguments": arguments})))


def test_text_that_is_longer_than_the_positions_is_refused_by_the_plan(here):
    of_transformers(here, "GPT-2")
    config = json.loads((here / "a.safetensors" / "config.json").read_text())
    (here / "text.txt").write_text("as many bytes as there are tokens " * 9)
    data = {"path": "text.txt", "tokenizer": "bytes", "length": config["n_positions"] + 1}
    (here / "recipe.yml").write_text(recipe(learn=learn(architecture="hf", data=data)))
    most = config["n_positions"]
    said = rf"text\.txt: the network cannot .*: the model has {most} positions: give length: {most} or less"
    with pytest.raises(ValueError, match=rf"^recipe\.yml:\d+: learn\.data: {said}"):
        run("plan", "recipe.yml")


def test_a_folder_without_transformers_is_told_with_the_command(here, monkeypatch):
    of_transformers(here, "GPT-2")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r'learn\.architecture: .*transformers, .*not installed: pip install "npmerge\[hf\]"'):
        merge(here, "out", recipe(learn=learn(architecture="hf")))


def test_examples_that_the_module_does_not_take_are_told_with_its_layer(here):
    of_user(here)
    np.savez("x.npz", inputs=np.random.default_rng(0).random((8, 2, 6, 6), np.float32), labels=np.zeros(8, np.int64))
    message = (
        r"^recipe\.yml:\d+: learn\.data: x\.npz: the network cannot take .*: conv \(Conv2d\) fails on float32 \(2, 2, 6, 6\)"
    )
    with pytest.raises(ValueError, match=message):
        merge(here, "out", recipe(learn=learn(architecture="torch:nets_of_torch:network")))

"""Networks in the published layout, made here, through the smallest form of the experiment: rows, page, resuming, faults."""

import json
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import experiments.data
import npmerge as nm
from experiments.data import standardised
from experiments.learning import Budget
from experiments.run import read_rows
from experiments.strangers.__main__ import main
from experiments.strangers.alignments import ZIPPED
from experiments.strangers.findings import findings
from experiments.strangers.merging import Merging
from experiments.strangers.networks import find, load
from experiments.strangers.page import page
from experiments.strangers.results import Results
from experiments.strangers.rows import Experiment
from experiments.strangers.settings import ENSEMBLE, PARENTS, PARTIAL, REPAIR
from experiments.strangers.ways import CONTROL, LEARNED, PARENT, SOLVED, TAUGHT_SOLVED, TENSORS, WAYS
from npmerge.demo.digits import load_digits
from npmerge.models import ResNetCifar, build

CONFIG = ResNetCifar(1, 4, "A")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits as CIFAR-10 is published, and two networks with other weights in the published names."""
    path = tmp_path_factory.mktemp("strangers")
    digits = load_digits("same", seed=0).test
    images = np.repeat(digits.inputs.reshape(-1, 1, 8, 8), 3, 1).repeat(4, 2).repeat(4, 3)
    images = np.round(255 * (images - images.min()) / np.ptp(images)).astype(np.uint8).reshape(len(images), -1)
    rows = np.concatenate([digits.labels.astype(np.uint8)[:, None], images], 1)
    for k, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        rows[k * 40 : k * 40 + 40].tofile(path / f"{name}.bin")
    for k in range(2):
        save_file(nm.checkpoint.to_named(CONFIG, build(CONFIG, seed=k).variables), path / f"{k}.safetensors")
    return path


def run(folder, out, preset="test", seeds=1):
    main(preset, out, 0, seeds, data=folder, networks=[folder / "0.safetensors", folder / "1.safetensors"])


@pytest.fixture(scope="module")
def out(folder):
    run(folder, folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def rows(out):
    return read_rows(out / "rows.csv")


def test_every_row_is_there_and_judged(rows):
    assert [row["images"] for row in rows if row["method"] == CONTROL] == [44, 40]
    assert [row["size"] for row in rows if row["method"] == PARTIAL] == [1.5]
    assert {row["method"] for row in rows} >= {LEARNED, CONTROL, TAUGHT_SOLVED, ENSEMBLE, f"{ZIPPED}: {REPAIR}"}
    assert all(0 <= row["accuracy"] <= 1 and row["networks"] == "0 + 1" for row in rows)


def test_rates_are_chosen_once(rows):
    for name in (LEARNED, CONTROL, TAUGHT_SOLVED):
        rates = {row["rate"] for row in rows if row["method"] == name}
        assert len(rates) == 1 and rates <= set(WAYS[name].rates)
    assert len(WAYS[LEARNED].rates) == len(WAYS[CONTROL].rates)


def test_a_rate_is_that_of_the_first_row_of_its_way():
    rows = [{"method": "a", "rate": 0.1}, {"method": "b", "rate": 0.2}, {"method": "a", "rate": 0.3}]
    some = SimpleNamespace(rows=SimpleNamespace(all=rows))
    assert Experiment._chosen(some, "a") == (0.1,)
    assert Experiment._chosen(some, "c") == ()


def test_words_follow_the_rows():
    def told(larger=(), **accuracies):
        names = {"solved": SOLVED, "control": CONTROL, "parent": PARENT, "free": PARTIAL}
        rows = [{"method": PARENTS, "images": 0, "size": 1.0, "seed": 0, "accuracy": 0.9, "each": [0.9, 0.92]}]
        rows += [
            {"method": names[k], "images": 50, "size": 1.0, "seed": 0, "accuracy": v, "each": []} for k, v in accuracies.items()
        ]
        rows += [{"method": PARTIAL, "images": 50, "size": size, "seed": 0, "accuracy": v} for size, v in larger]
        return "\n".join(findings(Results(tuple(rows)), 50))

    worse = told(solved=0.8, control=0.85, parent=0.91, free=0.84, larger=[(1.25, 0.85), (2.0, 0.91), (1.5, 0.88)])
    assert "-5.00 points (one seed) with 50 images" in worse
    assert f"The best that starts from a merge is {CONTROL} with 85.0 %: 7.0 points short." in worse
    assert "a parent is a better start" in worse and "84.0 %: not reached" in worse
    assert f"{PARTIAL} of 1.5 times its operations has 88.0 %." in worse
    better = told(solved=0.93, control=0.85, parent=0.91, free=0.86)
    assert "+8.00 points (one seed)" in better and f"{SOLVED} with 93.0 %: reached." in better
    assert "the merge is better" in better and "86.0 %: reached." in better


def test_coefficients_that_are_one_network_again_are_said_to_be():
    row = {"images": 50, "size": 1.0, "accuracy": 0.9}
    rows = [{**row, "method": PARENTS, "seed": 0, "each": [0.9, 0.92]}, {**row, "method": CONTROL, "seed": 0, "each": []}]
    rows += [{**row, "method": LEARNED, "seed": k, "each": each} for k, each in enumerate(([0.4, 0.6], [0.5, 0.5]))]
    rows += [{**row, "method": TENSORS, "seed": 0, "each": [0.94, 0.06]}]
    *_, shares, alone = [x for x in findings(Results(tuple(rows)), 50) if "networks" in x]
    assert shares.endswith(f"from 50 images: {TENSORS} 94 %, 6 %; {LEARNED} 45 %, 55 %.")
    assert alone.endswith(f"rather than a merge: {TENSORS}.")


def test_the_page_is_made_of_the_files_alone(out, rows):
    text = (out / "README.md").read_text()
    assert page(out) == text
    for row in rows[1:]:  # of the parents each is told
        assert f"{100 * row['accuracy']:.1f}" in text
    assert json.loads((out / "summary.json").read_text())["command"] in text
    assert (out / "accuracy.png").stat().st_size > 10_000


def test_a_page_of_a_part_says_so(out, tmp_path):
    for name in ("rows.csv", "settings.json", "summary.json"):
        (tmp_path / name).write_text((out / name).read_text())
    summary = json.loads((out / "summary.json").read_text())
    assert summary["complete"] and "not at its end" not in page(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"complete": False}))
    assert "The run is not at its end" in page(tmp_path)


def test_nothing_is_done_twice(folder, out, monkeypatch):
    monkeypatch.setattr(Experiment, "merging", lambda *_: pytest.fail("every row is there"))
    run(folder, out)
    with pytest.raises(ValueError, match="made with other settings"):
        run(folder, out, preset="cpu")


def test_an_interrupted_run_goes_on(folder, out, rows, tmp_path):
    for name in ("rows.csv", "settings.json"):
        lines = (out / name).read_text().splitlines(keepends=True)
        (tmp_path / name).write_text("".join(lines[:-2]) + lines[-2][:9] if name == "rows.csv" else "".join(lines))
    run(folder, tmp_path)
    again = read_rows(tmp_path / "rows.csv")
    for row in (*rows, *again):
        row.pop("seconds")
    assert again == rows


def test_networks_that_are_not_there(folder):
    with pytest.raises(ValueError, match=r"no network resnet20_zheng, .*: get github.com/Zheng-Jiakun/.*--networks"):
        find("resnet20_zheng", folder)
    with pytest.raises(ValueError, match=r"no network nobody, .*known ones are resnet20_akamaster"):
        find("nobody", folder)


def test_networks_of_other_architectures(folder, tmp_path):
    other = ResNetCifar(1, 8, "A")
    save_file(nm.checkpoint.to_named(other, build(other).variables), tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match="must be of one architecture"):
        load([str(folder / "0.safetensors"), str(tmp_path / "wide.safetensors")])


def test_shortcuts_of_zeros_are_segments_and_the_graph_holds(folder):
    strangers = load([str(folder / f"{k}.safetensors") for k in range(2)])
    assert strangers.error < 1e-5
    assert jax.tree.structure(strangers.models[0]) == jax.tree.structure(strangers.models[1])


@pytest.fixture(scope="module")
def merging(folder):
    digits = standardised(experiments.data.load("cifar10", folder), validation=0).train.take(np.arange(40))
    return Merging(load([str(folder / f"{k}.safetensors") for k in range(2)]), digits, 36, 0, lambda _: None)


def test_validation_images_are_not_learned_from(merging):
    assert [len(merging.validation.labels), len(merging.images.labels)] == [4, 36]
    known = {image.tobytes() for image in merging.images.inputs}
    assert not any(image.tobytes() in known for image in merging.validation.inputs)
    assert {image.tobytes() for batch in merging.unlabelled for image in batch[0]} <= known


def test_zero_steps_are_the_start(merging):
    average = merging.renewed(nm.Average()(merging.matched))
    starts = {LEARNED: average, CONTROL: average, PARENT: merging.renewed(merging.better)}
    assert any(merging.better is model for model in merging.strangers.models)
    for name, start in starts.items():
        found = merging.learned(WAYS[name], Budget(0), 16, (0.1,))
        chex.assert_trees_all_close(found.network, start, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.shares, [0.5, 0.5] if name == LEARNED else [], atol=1e-6)

"""`npmerge align` on networks that are permutations of each other: what it writes, and what it refuses."""

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import alignment
import npmerge as nm
from alignment import ALIGNMENTS, CCA, Graph, permutation, trace, transport
from npmerge.checkpoint import load_network, load_record, save_network, to_named
from npmerge.cli import app, main
from npmerge.commands import align_page
from npmerge.commands.align_inputs import BATCH, Data, read_data
from npmerge.commands.align_page import _moves
from npmerge.commands.alignments import METHODS, alignment_of
from npmerge.commands.sources import sha256
from npmerge.learning.data import Examples
from npmerge.models import Config, Gpt2, Mlp, Vgg, abstract, build, example
from npmerge.reports.folder import REPORT
from npmerge.reports.markdown import markdown
from npmerge.reports.progress import phases, shown

MLP = Mlp(inputs=6, hidden=(8, 7), classes=3)
VGG = Vgg(stages=((4, 5),), dense=(), classes=3, side=2, channels=2, norm="batch")
NAMED_VGG = Vgg(stages=((2,), (3,)), dense=(), classes=3, side=4, channels=2, norm="batch")
NAMES = ("a.safetensors", "b.safetensors", "c.safetensors")


def said(summary: dict[str, Any]) -> str:
    return markdown(align_page.page(summary))


def graph_of(config: Config) -> Graph:
    network = abstract(config)
    return trace(network.apply, network.variables, example(config))


def network(config: Config, seed: int) -> Any:
    """Generic variables: no zero biases, no untouched statistics."""
    rng = np.random.default_rng(seed)
    variables = build(config, seed=seed).variables
    noise = jax.tree.map(lambda x: 0.3 * rng.uniform(size=x.shape).astype(np.float32), variables)
    return jax.tree.map(lambda x, e: 1.5 * x + e, variables, noise)


def write(folder: Path, config: Config, count: int) -> list[Path]:
    """A network and permutations of it."""
    graph, variables = graph_of(config), network(config, 0)
    for k, name in enumerate(NAMES[:count]):
        maps = {node: permutation(np.roll(np.arange(n.size), k)) for node, n in graph.nodes.items()}  # no unit stays
        save_network(folder / name, config, transport(graph, maps, variables), {"trained": k})
    rng = np.random.default_rng(9)
    inputs = rng.standard_normal((24, *config.input_shape))
    outputs, _ = build(config).train_apply(variables, inputs.astype(np.float32))
    np.savez(folder / "data.npz", inputs=inputs, labels=outputs.argmax(-1))  # they are good at what they do themselves
    np.savez(folder / "inputs.npz", inputs=inputs)
    return [folder / name for name in NAMES[:count]]


class Ran(NamedTuple):
    files: list[Path]
    out: Path
    summary: dict[str, Any]
    stdout: str
    stderr: str

    @property
    def report(self) -> str:
        return (self.out / "report.md").read_text(encoding="utf-8")


def align(files: list[Path], out: Path, *options: str) -> Ran:
    arguments = ["align", *map(str, files), "--points", "3", "--out", str(out), *options]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return Ran(files, out, json.loads((out / "summary.json").read_text()), result.stdout, result.stderr)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three perceptrons and data."""
    folder = tmp_path_factory.mktemp("mlp")
    write(folder, MLP, 3)
    return folder


@pytest.fixture(scope="module")
def matched(folder) -> Ran:
    files = [folder / name for name in NAMES]
    return align(files, folder / "out", "--method", "weight-matching", "--data", str(folder / "data.npz"), "--seed", "3")


@pytest.fixture(scope="module")
def normalised(tmp_path_factory) -> Ran:
    """Two networks with BatchNorm, by activations."""
    folder = tmp_path_factory.mktemp("vgg")
    files = write(folder, VGG, 2)
    return align(files, folder / "out", "--method", "activation-matching", "--data", str(folder / "data.npz"))


@pytest.mark.parametrize("ran", ["matched", "normalised"])
def test_planted_permutations_are_undone(ran, request):
    ran = request.getfixturevalue(ran)
    reference = load_network(ran.files[0])
    for file in ran.files:
        config, variables = load_network(ran.out / file.name)
        assert config == reference[0]
        chex.assert_trees_all_equal(variables, reference[1])
    for before, after in zip(ran.files[1:], ran.summary["networks"], strict=True):
        assert before.name == after["file"]
        assert after["squared_distance"]["before"] > 1
        assert after["squared_distance"]["after"] == 0
        assert after["outputs_moved_by"] < 1e-6
        assert after["barrier"]["before"] > 1e-3
        assert after["barrier"]["after"] < 1e-5
        for node in after["matched_correlation"].values():
            assert node["before"] < 0.9
            assert node["after"] == pytest.approx(1, abs=1e-5)
    assert ran.summary["verify"] < 1e-5


def test_everything_promised_is_written_and_nothing_else(matched):
    written = {*NAMES, *REPORT, "correlation.png", "barrier.png"}
    assert {path.name for path in matched.out.iterdir()} == written == set(matched.summary["written"])
    assert not [path for path in matched.out.parent.iterdir() if path.name.startswith(".")]


def test_records_say_where_a_network_comes_from(matched):
    record = load_record(matched.out / NAMES[1])
    assert record["trained"] == 1  # what was known before
    assert record["architecture"]["class"] == "Mlp"
    made = record["align"]
    sources = [{"file": path.name, "sha256": sha256(path)} for path in matched.files]
    assert made["sources"] == sources
    assert made["original"] == sources[1]
    assert (made["method"], made["approximate"], made["seed"]) == ("weight-matching", False, 3)
    assert (made["jax"], made["numpy"]) == (jax.__version__, np.__version__)
    assert made["data"]["sha256"] == sha256(matched.files[0].parent / "data.npz")


def test_the_report_and_the_terminal_tell_the_same_figures(matched):
    network = matched.summary["networks"][0]
    barrier = f"{network['barrier']['before']:.3g} -> {network['barrier']['after']:.3g}"
    assert barrier in matched.report
    assert f"barrier (nats) {barrier}" in matched.stdout
    for part in ("](correlation.png)", "`params/layers/0`", "SHA-256", matched.summary["command"]):
        assert part in matched.report
    assert "BatchNorm" not in matched.report
    theirs = said(matched.summary | {"modules": {"params/layers/0": "classifier.0"}})
    assert "| `classifier.0` (params/layers/0) |" in theirs and "| `params/layers/1` |" in theirs
    assert matched.stderr.splitlines()[:3] == ["reading", "tracing", "aligning by weight-matching"]


def test_an_alignment_that_makes_it_worse_says_so(matched):
    assert "Worse than before" not in matched.report + matched.stdout
    networks = [network | {"barrier": {"before": 0.1, "after": 0.2}} for network in matched.summary["networks"][:1]]
    worse = matched.summary | {"networks": [*networks, *matched.summary["networks"][1:]]}
    line = "- Worse than before: the barrier to b.safetensors is higher after the alignment. Try activation-matching, "
    for page in (said(worse).splitlines(), align_page.told(worse)):
        assert len([x for x in page if x.startswith(line)]) == 1
    (line,) = [x for x in align_page.told(worse | {"method": "scale"}) if "Worse" in x]
    assert line.endswith("Try more examples, or another method.")


def test_long_steps_tell_how_far_they_have_got(capsys, monkeypatch):
    times = iter([0, 0, 1, 12, 12, 13])
    monkeypatch.setattr("npmerge.reports.progress.time.monotonic", lambda: next(times))
    with phases() as advance:
        advance("reading")
        for k in (1, 2, 3):
            advance("reading", f"{k} of 3")
    assert capsys.readouterr().err.splitlines() == ["reading", "reading 2 of 3"]


def test_long_work_on_tensors_is_told_in_lines(capsys, monkeypatch):
    times = iter([0, 4, 11, 12, 13])
    monkeypatch.setattr("npmerge.reports.progress.time.monotonic", lambda: next(times))
    with shown(40, "merging", quiet=False) as told:
        for _ in range(3):
            told.advance(10)
    assert capsys.readouterr().err.splitlines() == ["merging: 50%"]


def test_statistics_are_estimated_anew_along_the_path(normalised):
    assert "statistics were re-estimated at every point of the paths" in normalised.report
    path = normalised.summary["networks"][0]["path"]["after"]
    assert path["loss"] == pytest.approx([path["loss"][0]] * 3, abs=1e-6)
    with np.load(normalised.files[0].parent / "data.npz") as data:
        stored = nm.evaluate(
            build(VGG).apply, load_network(normalised.files[0])[1], [(data["inputs"].astype("f4"), data["labels"])]
        )
    assert abs(path["loss"][0] - stored.loss) > 1e-2


def test_without_data_the_rest_is_done_and_what_is_missing_is_said(folder, tmp_path):
    ran = align([folder / NAMES[0], folder / NAMES[1]], tmp_path / "out")
    assert {path.name for path in ran.out.iterdir()} == {*NAMES[:2], *REPORT}
    assert "\n\n\n" not in ran.report
    assert ran.summary["networks"][0]["barrier"] is None
    assert ran.summary["networks"][0]["squared_distance"]["after"] == 0
    assert ran.summary["verify"] < 1e-5
    for told in (ran.stdout, ran.report):
        assert "No data: no matched correlation, no barrier (--data FILE.npz with inputs and labels)." in told


def test_without_labels_there_is_no_barrier(folder, tmp_path):
    data = ["--data", str(folder / "inputs.npz")]
    ran = align([folder / NAMES[0], folder / NAMES[1]], tmp_path / "out", "--method", "activation-matching", *data)
    assert {path.name for path in ran.out.iterdir()} == {*NAMES[:2], *REPORT, "correlation.png"}
    assert "No labels in inputs.npz: no barrier." in ran.stdout


def test_half_precision_stays(folder, tmp_path):
    for name in NAMES[:2]:
        config, variables = load_network(folder / name)
        save_network(tmp_path / name, config, jax.tree.map(lambda x: x.astype("bfloat16"), variables))
    with jax.numpy_dtype_promotion("standard"):  # the layers multiply bfloat16 with their float32 inputs
        ran = align([tmp_path / name for name in NAMES[:2]], tmp_path / "out", "--data", str(folder / "inputs.npz"))
    chex.assert_trees_all_equal(load_network(ran.out / NAMES[1])[1], load_network(tmp_path / NAMES[0])[1])
    assert ran.summary["networks"][0]["outputs_moved_by"] < 0.05


def test_an_approximate_alignment_says_so_and_what_was_warned_of(folder, tmp_path):
    data = ["--data", str(folder / "data.npz")]
    ran = align([folder / NAMES[0], folder / NAMES[1]], tmp_path / "out", "--method", "procrustes", "--approximate", *data)
    assert load_record(ran.out / NAMES[1])["align"]["approximate"] is True
    network = ran.summary["networks"][0]
    before, after = (network["path"][when]["loss"][-1] for when in ("before", "after"))
    assert f"own loss (nats) {before:.3f} -> {after:.3f}; barrier" in ran.stdout
    said = f"was changed{' for the worse' * (after > before)}, and the barrier is of the way to what it became. Its own loss: "
    assert said in ran.stdout
    assert "--approximate lets maps leave the groups" in ran.report


def test_statistics_of_approximate_maps_are_estimated_anew(normalised, tmp_path):
    """From whole batches, for those of the maps are no longer its own; the reference keeps what it has."""
    data = ["--data", str(normalised.files[0].parent / "data.npz")]
    ran = align(normalised.files, tmp_path / "out", "--method", "procrustes", "--approximate", *data)
    before, after = (load_network(ran.out / file.name)[1] for file in ran.files)
    chex.assert_trees_all_equal(before, load_network(ran.files[0])[1])
    again = nm.reset_statistics(build(VGG).train_apply, after, read_data(Path(data[1]), VGG).even_batches())
    chex.assert_trees_all_close(again, after, rtol=1e-5, atol=1e-6)


def test_statistics_are_of_all_examples_in_batches_of_one_size():
    def sizes(count: int) -> list[int]:
        data = Data(Path("x.npz"), "", Examples("x.npz", np.arange(6.0 * count).reshape(count, 6), None))
        batches = data.even_batches()
        np.testing.assert_array_equal(np.concatenate([inputs for inputs, _ in batches]), data.inputs)
        return [len(inputs) for inputs, _ in batches]

    assert sizes(2 * BATCH) == [BATCH, BATCH]
    assert sizes(2 * BATCH + 1) == [86, 86, 85]  # 257 examples
    assert sizes(200) == [100, 100]
    assert sizes(BATCH - 1) == [BATCH - 1]


def test_the_seed_is_that_of_the_alignment_and_of_the_check(folder, tmp_path, monkeypatch):
    keys = []

    def spied(function):
        return lambda *args, key, **rest: keys.append(jax.random.key_data(key).tolist()) or function(*args, key=key, **rest)

    for place, name in (("learning.aligning", "align"), ("commands.align", "verify")):
        monkeypatch.setattr(f"npmerge.{place}.{name}", spied(getattr(alignment, name)))
    align([folder / NAMES[0], folder / NAMES[1]], tmp_path / "out", "--seed", "7")
    assert keys == [jax.random.key_data(jax.random.key(7)).tolist()] * 2


def test_warnings_are_told_once_and_go_into_the_report(folder, tmp_path, monkeypatch):
    def warned(*args, **rest):
        for category in (UserWarning, UserWarning, DeprecationWarning):
            warnings.warn(f"look at the {category.__name__}", category, stacklevel=1)
        return alignment.align(*args, **rest)

    monkeypatch.setattr("npmerge.learning.aligning.align", warned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        ran = align([folder / NAMES[0], folder / NAMES[1]], tmp_path / "out")
    assert ran.summary["warnings"] == ["look at the UserWarning"]
    for told in (ran.report, ran.stdout):
        assert told.count("look at the UserWarning") == 1


def test_statistics_that_are_estimated_anew_are_not_warned_of(normalised, tmp_path):
    data = ["--data", str(normalised.files[0].parent / "data.npz")]
    ran = align(normalised.files, tmp_path / "out", "--method", "procrustes", "--approximate", *data)
    assert "in the aligned checkpoints" in ran.report
    assert ran.summary["warnings"] == []


def test_one_example_has_no_correlation(folder, tmp_path):
    np.savez(tmp_path / "one.npz", inputs=np.ones((1, 6)))
    ran = align([folder / NAMES[0], folder / NAMES[1]], tmp_path / "out", "--data", str(tmp_path / "one.npz"))
    assert ran.summary["networks"][0]["matched_correlation"] is None
    assert "One example in one.npz: correlation cannot be measured." in ran.stdout


def test_names_in_brackets_are_told_as_they_are(folder, tmp_path):
    path = tmp_path / "x[red].safetensors"
    path.write_bytes((folder / NAMES[1]).read_bytes())
    assert path.name in align([folder / NAMES[0], path], tmp_path / "out").stdout


def test_force_replaces_files_and_keeps_others(folder, tmp_path):
    (tmp_path / "mine.txt").write_text("old")
    for name in ("report.md", "barrier.png", "correlation.png", "mine.png"):
        (tmp_path / name).write_text("old")
    ran = align([folder / NAMES[0], folder / NAMES[1]], tmp_path, "--force")
    assert "old" not in ran.report
    assert (tmp_path / "mine.txt").read_text() == "old"
    kept = {"mine.txt", "mine.png"}  # but not the figures of an earlier run, which are not of this one
    assert {path.name for path in tmp_path.iterdir()} == kept | set(ran.summary["written"])


@pytest.fixture
def refused(folder, monkeypatch, capsys, tmp_path):
    """Run a command that must end with status 2 and one line, and write nothing."""
    monkeypatch.chdir(folder)

    def run(*arguments: str, out: Path = tmp_path / "out") -> str:
        before = sorted([*tmp_path.rglob("*"), *folder.rglob("*")])
        monkeypatch.setattr(sys, "argv", ["npmerge", "align", *arguments, "--out", str(out)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        assert ended.value.code == 2
        assert told.out == ""
        assert sorted([*tmp_path.rglob("*"), *folder.rglob("*")]) == before
        (line,) = [line for line in told.err.splitlines() if line.startswith("npmerge: ")]
        assert told.err.endswith(f"{line}\n")
        return line.removeprefix("npmerge: ")

    return run


def test_methods_are_called_after_their_classes():
    kinds = {re.sub(r"(?<=[a-z])(?=[A-Z])", "-", kind.__name__).lower(): kind for kind in ALIGNMENTS if not kind.resizes}
    assert {name: kind.__name__ for name, kind in kinds.items()} == METHODS
    for name, kind in kinds.items():
        assert alignment_of(name, approximate=False) == kind()
    assert alignment_of("cca", approximate=True) == CCA(approximate=True)


def test_methods_are_known_by_the_names_of_recipes_and_classes(refused):
    needed = "activation-matching needs activations"
    assert all(refused(*NAMES, "--method", name).startswith(needed) for name in ("activation_matching", "ActivationMatching"))
    assert "zipit needs activations" in refused(*NAMES, "--method", "zip_it")


def test_a_misspelt_method(refused):
    line = refused(*NAMES, "--method", "wieght-matching")
    assert line.startswith("unknown method 'wieght-matching': the nearest is 'weight-matching', expected one of ")
    assert all(name in line for name in METHODS)


def test_activations_without_data(refused):
    line = refused(*NAMES, "--method", "activation-matching")
    assert line == "activation-matching needs activations: give examples of the task with --data FILE.npz (inputs, labels)"


def test_maps_outside_the_groups(refused):
    line = refused(*NAMES, "--method", "cca", "--data", "data.npz")
    assert "'params/layers/0' (scale)" in line
    assert "pass --approximate if that is meant" in line
    assert "--approximate is for procrustes, cca: weight-matching" in refused(*NAMES, "--approximate")


def test_too_few_and_files_of_one_name(refused, tmp_path):
    assert refused(NAMES[0]) == "align needs at least two checkpoints, the first is the reference: got 1"
    assert "more than one is called a.safetensors" in refused(NAMES[0], NAMES[0])


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (Mlp(inputs=6, hidden=(8, 9), classes=3), "(hidden is (8, 9), not (8, 7))"),
        (Mlp(inputs=6, hidden=(8,), classes=4), "(hidden is (8,), not (8, 7); classes is 4, not 3)"),
        (VGG, "(the architecture is 'Vgg', not 'Mlp')"),
    ],
)
def test_other_architectures(refused, tmp_path, other, told):
    path = tmp_path / "x.safetensors"
    save_network(path, other, build(other).variables)
    assert refused(*NAMES[:2], str(path)) == f"all networks must have the architecture of a.safetensors: {path} {told}"


def test_damaged_checkpoints(refused, folder, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((folder / NAMES[0]).read_bytes()[:-4])
    assert refused(NAMES[0], str(path)) == f"{path}: is truncated: its tensors take 572 bytes, 568 are there"
    assert refused(NAMES[0], "none.safetensors") == "none.safetensors: no such file or folder"
    variables = network(MLP, 0)
    variables["params"]["layers"][0]["bias"] = variables["params"]["layers"][0]["bias"].at[2].set(np.nan)
    save_network(path, MLP, variables, overwrite=True)
    assert refused(NAMES[0], str(path)) == f"{path} has 1 non-finite values of 8 in 'params/layers/0/bias'"


def test_networks_in_the_names_of_pytorch_are_aligned_and_keep_them(tmp_path):
    """One as npz, one with wrapped names: formats and spellings of strangers, permuted by units."""
    graph, variables = graph_of(NAMED_VGG), network(NAMED_VGG, 0)
    maps = {node: permutation(np.roll(np.arange(n.size), 1)) for node, n in graph.nodes.items()}
    first = to_named(NAMED_VGG, variables)
    first = {name: x for name, x in first.items() if "num_batches" not in name}
    second = {f"module.{name}": x for name, x in to_named(NAMED_VGG, transport(graph, maps, variables)).items()}
    np.savez(tmp_path / "one.npz", **first)
    save_file(second, tmp_path / "two.safetensors")
    ran = align([tmp_path / "one.npz", tmp_path / "two.safetensors"], tmp_path / "out")
    assert set(ran.summary["written"]) == {"one.safetensors", "two.safetensors", *REPORT}
    for name, names in (("one", first), ("two", second)):
        written = load_file(tmp_path / "out" / f"{name}.safetensors")
        assert set(written) == set(names)
        for key, x in written.items():
            np.testing.assert_array_equal(x, first[key.removeprefix("module.")] if "num_batches" not in key else 0)
    assert ran.summary["modules"]["params/stages/1/0/conv"] == "features.4"
    again = align([tmp_path / "out" / f"{name}.safetensors" for name in ("one", "two")], tmp_path / "again")
    assert again.summary["networks"][0]["squared_distance"] == {"before": 0, "after": 0}
    assert load_record(tmp_path / "again" / "two.safetensors")["align"]["sources"] == again.summary["sources"]


def test_folders_keep_what_stands_beside_their_weights(tmp_path):
    tensors, out = to_named(NAMED_VGG, network(NAMED_VGG, 0)), tmp_path / "out"
    for name in ("one", "two"):
        (tmp_path / name / "deep").mkdir(parents=True)
        save_file(tensors, tmp_path / name / "model.safetensors")
        for file in ("config.json", "tokenizer.json", "deep/note.txt"):
            (tmp_path / name / file).write_text(f'{{"of": "{name}"}}')
    (tmp_path / "two" / "link").symlink_to(tmp_path)
    for _ in range(2):  # again over what is there
        ran = align([tmp_path / "one", tmp_path / "two"], out, "--force")
    for name in ("one", "two"):
        found = {x.relative_to(out / name).as_posix() for x in (out / name).rglob("*") if x.is_file()}
        assert found == {"model.safetensors", "config.json", "tokenizer.json", "deep/note.txt"}
        assert json.loads((out / name / "config.json").read_text()) == {"of": name}
        np.testing.assert_equal(load_file(out / name / "model.safetensors"), tensors)
        with safe_open(out / name / "model.safetensors", "np") as file:
            assert file.metadata()["format"] == "pt"  # or transformers refuses it
    assert "- Nothing had to move in two: it is as near to the reference as it was." in ran.report.splitlines()
    assert ran.summary["warnings"] == ["two: link was not carried over: it is neither a file nor a folder that lies here"]


def test_what_is_no_known_network_says_what_to_do(refused, tmp_path):
    np.savez(tmp_path / "x.npz", weight=np.zeros((2, 2)))
    line = refused(str(tmp_path / "x.npz"), NAMES[0])
    assert line.startswith(f"{tmp_path / 'x.npz'}: no known architecture has tensors such as weight: expected one of Vgg, ")
    assert (
        ". A network of your own is aligned as it is merged, by a recipe with align: {method, architecture, data}, or in "
        "Python, by npmerge.trace and npmerge.align; here networks of npmerge.models" in line
    )
    assert "load_named" in line


def test_a_folder_has_the_hash_of_its_files(tmp_path):
    found = set()
    for change in ({"a": b"1"}, {"a": b"2"}, {"b": b""}):
        for name, content in change.items():
            (tmp_path / name).write_bytes(content)
        found.add(sha256(tmp_path))
    assert len(found) == 3


def test_other_dtypes(refused, tmp_path):
    path = tmp_path / "x.safetensors"
    save_network(path, MLP, jax.tree.map(lambda x: x.astype("bfloat16"), network(MLP, 0)))
    assert f"{path} has bfloat16 at 'params/layers/0/bias', a.safetensors float32" in refused(NAMES[0], str(path))


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x": np.zeros(3)}, "has no array 'inputs': got x"),
        ({"inputs": np.zeros((4, 5))}, "inputs must have the shape (examples, 6), got (4, 5)"),
        ({"inputs": np.zeros((0, 6))}, "holds no examples"),
        ({"inputs": np.zeros((4, 6), np.uint8)}, "inputs must be floating-point, got uint8"),
        ({"inputs": np.full((4, 6), np.nan)}, "inputs hold values that are not finite: 24, the first in example 0"),
        ({"inputs": np.full((4, 6), 1e300)}, "inputs hold values that are not finite: 24"),
        ({"inputs": np.zeros((4, 6)), "labels": np.zeros(3, int)}, "has 4 inputs and 3 labels"),
        ({"inputs": np.zeros((4, 6)), "labels": np.zeros(4)}, "labels must be integers, got floating-point numbers"),
        ({"inputs": np.zeros((4, 6)), "labels": np.full(4, 3)}, "labels out of range: got 3 to 3, expected 0 to 2"),
        ({"inputs": np.array([None])}, "is not an .npz file of arrays"),
    ],
)
def test_data_that_do_not_fit(refused, tmp_path, arrays, told):
    np.savez(tmp_path / "x.npz", **arrays)
    line = refused(*NAMES[:2], "--data", str(tmp_path / "x.npz"))
    assert line.startswith(str(tmp_path / "x.npz"))
    assert told in line


def test_data_of_another_format(refused, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 6)))
    (tmp_path / "text.npz").write_text("no numbers")
    for name in ("x.npy", "text.npz"):
        line = refused(*NAMES[:2], "--data", str(tmp_path / name))
        assert line.endswith(f"{name} is not an .npz file of arrays: numpy.savez(FILE, inputs=x, labels=y) writes one")
    assert refused(*NAMES[:2], "--data", "none.npz") == "none.npz: no such file or folder of data"


def test_tokens_must_be_in_the_vocabulary_and_may_be_shorter(tmp_path):
    config = Gpt2(vocabulary=11, width=8, layers=1, heads=2, hidden=6, length=5)
    np.savez(tmp_path / "x.npz", inputs=np.full((2, 4), 10))
    assert read_data(tmp_path / "x.npz", config).inputs.dtype == np.int32
    for wrong, told in [(np.full((2, 4), 11), "tokens must be from 0 to 10"), (np.zeros((2, 6), int), "up to 5")]:
        np.savez(tmp_path / "x.npz", inputs=wrong)
        with pytest.raises(ValueError, match=told):
            read_data(tmp_path / "x.npz", config)


def test_folders_that_cannot_be_written(refused, folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("old")
    assert "full exists and has files in it" in refused(*NAMES, out=tmp_path / "full")
    line = refused(*NAMES, "--force", out=folder)
    assert line == "a.safetensors would be overwritten by its aligned copy: choose another folder with --out"
    assert "--points must be 2 or more, both ends are among them: got 1" in refused(*NAMES, "--points", "1")
    for seed in (-1, 2**32, 2**63):
        assert f"--seed must be from 0 to 4294967295, got {seed}" in refused(*NAMES, "--seed", str(seed))
    for name in (*REPORT, "correlation.png", "barrier.png"):
        line = refused(NAMES[0], f"elsewhere/{name}")
        assert line == f"elsewhere/{name} would be overwritten by the report of that name: rename the checkpoint"


def test_nothing_is_left_of_a_run_that_fails_late(refused, monkeypatch):
    def fail(*_, **__):
        raise ValueError("late")

    monkeypatch.setattr("npmerge.commands.align_run.write_report", fail)
    assert refused(*NAMES[:2]) == "late"


def test_figures_draw_a_line_for_each_network_before_and_after():
    before, after = ({f"n{k}": np.array([k, -k]) / scale for k in range(3)} for scale in (4, 2))
    (axes,) = nm.correlation_figure(before, after, ["b", "c"]).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines[:4]}
    assert lines == {"b, before": [0, 0.25, 0.5], "c, before": [0, -0.25, -0.5], "b": [0, 0.5, 1], "c": [0, -0.5, -1]}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["n0", "n1", "n2"]
    fractions = np.array([0, 0.5, 1])
    paths = [[nm.Path(fractions, np.array([1, top, 1]), fractions)] for top in (3, 1.5)]
    (axes,) = nm.barrier_figure(*paths, ["b"]).axes
    assert [line.get_label() for line in axes.lines] == ["b, before (barrier 2)", "b, after (barrier 0.5)"]
    assert [line.get_linestyle() for line in axes.lines] == ["--", "-"]
    assert axes.get_ylabel() == "loss"  # of one's own, perhaps: only the caller knows its unit
    assert nm.barrier_figure(*paths, ["b"], label="loss (nats)").axes[0].get_ylabel() == "loss (nats)"
    assert axes.get_legend() is None and axes.figure.legends  # below the axes: inside them it covers the curves


def test_barrier_figure_takes_what_barrier_returns_of_one_network_or_of_several():
    path = nm.Path(*[np.array([0.0, 1.0, 0.0])] * 3)
    barrier = nm.Barrier(path.barrier, path.accuracy_barrier, path)
    for before, after, names in [(barrier, path, "b"), ([barrier], [path], ["b"]), (barrier, [path], ["b"])]:
        (axes,) = nm.barrier_figure(before, after, names).axes
        assert [line.get_label() for line in axes.lines] == ["b, before (barrier 1)", "b, after (barrier 1)"]
    with pytest.raises(ValueError, match="barrier_figure takes what barrier or path_between returns as after, got float"):
        nm.barrier_figure(barrier, barrier.loss, "b")
    with pytest.raises(ValueError, match="a path to each network: got 1 before, and 2 names"):
        nm.barrier_figure([path], [path], ["b", "c"])


def test_help_lists_the_methods():
    result = CliRunner().invoke(app, ["align", "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert all(name in result.stdout for name in METHODS)


def test_a_network_that_is_brought_away_is_told_of():
    networks = [
        {"file": file, "squared_distance": {"before": 2.0, "after": after}} for file, after in (("near", 2.0), ("far", 3.0))
    ]
    still, away = _moves({"networks": networks})
    assert still.startswith("Nothing had to move in near: ")
    assert away.startswith("far is farther from the reference than it was: fine-tunes of one base need no alignment")

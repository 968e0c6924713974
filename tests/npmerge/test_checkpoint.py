"""Trees and networks as files: what comes back, and what is refused by name."""

import json
import re
import stat
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.linen import Partitioned
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import npmerge as nm
from npmerge.checkpoint import load, load_network, load_record, save, save_network
from npmerge.checkpoint.trees import DTYPES
from npmerge.models import Llama, Mlp, Vgg, WithWidths, build

CONFIG = Mlp(inputs=3, hidden=(4, 5), classes=2)
WIDER = WithWidths(CONFIG, (("params/layers/1", 7),))

TREE = {
    "list": [np.arange(3), {"0": np.zeros(2, np.float16)}],
    "integers": {0: jnp.ones((2, 3)), 10: jnp.zeros(())},
    "tuple": (np.array([True, False]),),
    "empty": {},
    "nothing": [None, []],
}


def same(a, b):
    """The same containers, dtypes and values."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_a_tree_comes_back_as_it_was(tmp_path):
    save(tmp_path / "x", TREE)
    same(load(tmp_path / "x"), TREE)
    assert type(load(str(tmp_path / "x"))["list"][1]["0"]) is np.ndarray
    assert {path.name for path in tmp_path.iterdir()} == {"x"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_to_the_bit_whatever_the_order_in_memory(tmp_path, dtype):
    array = np.arange(6).reshape(2, 3).astype(jnp.dtype(dtype))
    tree = {"c": array, "f": array.T, "slice": array[:, ::2], "scalar": array[1, 1]}
    save(tmp_path / "x", tree)
    same(load(tmp_path / "x"), tree)


def test_one_array_alone(tmp_path):
    save(tmp_path / "x", np.arange(3.0))
    np.testing.assert_array_equal(load(tmp_path / "x"), [0, 1, 2])


def test_the_record_comes_back(tmp_path):
    record = {"seed": 3, "notes": ["a", {"b": 0.5}], "none": None}
    save(tmp_path / "x", TREE, record)
    assert load_record(tmp_path / "x") == record


def test_other_readers_see_the_paths(tmp_path):
    save(tmp_path / "x", TREE)
    assert set(load_file(tmp_path / "x")) == {"list/0", "list/1/0", "integers/0", "integers/10", "tuple/0"}


def test_a_file_is_only_replaced_if_asked_and_a_failure_leaves_it(tmp_path, monkeypatch):
    path = tmp_path / "x"
    save(path, {"a": np.zeros(1)})
    with pytest.raises(ValueError, match="x exists: choose another name, or pass overwrite=True"):
        save(path, {"a": np.ones(1)})
    save(path, {"a": np.ones(1)}, overwrite=True)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ValueError, match=r"cannot write .*: No space left on device"):
        save(path, {"a": np.zeros(1)}, overwrite=True)
    assert load(path)["a"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_others_may_read_it_as_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    save(tmp_path / "x", {})
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": [1.5]}, "cannot save 'a/0': got float, expected an array"),
        (nnx.State({"a": np.zeros(1)}), r"cannot save this: got State, .* tuple of them: give nnx.to_pure_dict\(state\)$"),
        (nnx.Linear(1, 1, rngs=nnx.Rngs(0)), r"got Linear, .*: give nnx.to_pure_dict\(nnx.state\(module\)\)$"),
        (nm.FitResult({}, None, "finished"), r"got FitResult, .*: give its theta, or .* merge.apply\(result.theta, stack\)$"),
        (nm.Stack({"a": np.zeros((2, 1))}), r"got Stack, .*: give one of its models\(\)$"),
        ({"a": Partitioned(np.zeros(1), ("x",))}, r"got Partitioned, .*: give flax.linen.meta.unbox\(variables\)$"),
        ({"a": {"b": "text"}}, "cannot save 'a/b': got str"),
        ({"a": jax.ShapeDtypeStruct((2,), "float32")}, "cannot save 'a': got ShapeDtypeStruct"),
        ({"a": jax.random.key(0)}, "cannot save 'a': got dtype key<fry>"),
        ({"a": np.array(["x"])}, "cannot save 'a': got dtype <U1"),
        ({"a": {(0, 1): np.zeros(1)}}, r"cannot save the key \(0, 1\) in 'a': expected text or an integer"),
        ({"a/b": np.zeros(1), "a": {"b": np.zeros(1)}}, "two leaves have the path 'a/b'"),
    ],
)
def test_what_is_no_tree_of_arrays_is_refused(tmp_path, tree, message):
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "x", tree)
    assert not list(tmp_path.iterdir())


def test_metrics_go_into_a_record_as_they_are(tmp_path):
    save(tmp_path / "x", {}, {"loss": np.float32(0.5), "steps": np.int64(3), "of": [jnp.float32(0.25), np.array(True)]})
    assert load_record(tmp_path / "x") == {"loss": 0.5, "steps": 3, "of": [0.25, True]}


def test_a_record_that_is_no_json_and_a_missing_folder(tmp_path):
    with pytest.raises(ValueError, match="the record is no JSON: got ndarray, expected text, numbers, lists and mappings"):
        save(tmp_path / "x", {}, {"a": np.zeros(1)})
    with pytest.raises(ValueError, match=r"cannot write .*: there is no folder "):
        save(tmp_path / "none" / "x", {})


def rewritten(path, **changes):
    """The file with other entries in its header."""
    with safe_open(path, "np") as file:
        header = json.loads(file.metadata()["npmerge"])
    save_file(load_file(path), path, metadata={"npmerge": json.dumps(header | changes)})


def test_damaged_files_are_told_apart(tmp_path):
    path = tmp_path / "x"
    for wrong, message in [(path, "no such file"), (tmp_path, "is a folder, expected a file")]:
        with pytest.raises(ValueError, match=f"{re.escape(str(wrong))}: {message}"):
            load(wrong)
    save(path, TREE)
    whole = path.read_bytes()
    for content, message in [
        (whole[:-1], "is truncated or damaged"),
        (whole[:50], "is not a safetensors file, or only the beginning of one"),
        (b"", "is not a safetensors file"),
        (b"PK\x03\x04 a file of another kind", "is not a safetensors file"),
    ]:
        path.write_bytes(content)
        for read in (load, load_record):
            with pytest.raises(ValueError, match=f"x {message}"):
                read(path)


@pytest.mark.parametrize("name", ["zip_training.pt", "legacy_training.pt"])
def test_files_of_other_formats_are_told_with_what_reads_them(name):
    path = Path(__file__).parents[1] / "fixtures" / "torch_2_13" / name
    for read in (load, load_record, load_network):
        with pytest.raises(ValueError, match=rf"{name} is in the format PyTorch.*load_named reads networks in PyTorch's names"):
            read(path)


def test_records_of_others_and_of_later_versions(tmp_path):
    path = tmp_path / "x"
    save_file({"a": np.zeros(1)}, path)
    with pytest.raises(ValueError, match="x has no record: it was not written by npmerge"):
        load(path)
    save(path, TREE, overwrite=True)
    rewritten(path, format=2)
    with pytest.raises(ValueError, match="x has format 2, this version of npmerge reads 1"):
        load(path)
    rewritten(path, format=1, containers={"dict": [["a", "b"]]})
    with pytest.raises(ValueError, match="x has a damaged record: its tensors do not fill its containers"):
        load(path)
    save_file({}, path, metadata={"npmerge": "[]"})
    with pytest.raises(ValueError, match="x has a damaged record"):
        load(path)


@pytest.mark.parametrize(
    "config",
    [CONFIG, Vgg(stages=((2,),), dense=(3,), classes=2, side=2, channels=1, norm="batch"), WIDER],
    ids=["Mlp", "Vgg", "WithWidths"],
)
def test_a_network_comes_back_with_its_configuration(tmp_path, config):
    variables = build(config).variables
    save_network(tmp_path / "x", config, variables, {"seed": 0})
    again, loaded = load_network(tmp_path / "x")
    assert again == config
    assert hash(again) == hash(config)
    same(loaded, variables)
    assert load_record(tmp_path / "x")["seed"] == 0


def test_half_precision_and_lists_for_integer_keys(tmp_path):
    variables = jax.tree.map(lambda x: x.astype(jnp.bfloat16), build(CONFIG).variables)
    layers = variables["params"]["layers"]
    save_network(tmp_path / "x", CONFIG, variables | {"params": {"layers": list(layers.values())}})
    same(load_network(tmp_path / "x")[1], variables)


def test_all_leaves_that_do_not_fit_are_listed_at_once(tmp_path):
    variables = build(CONFIG).variables
    for wrong in (Mlp(inputs=3, hidden=(4, 6), classes=2), Mlp(inputs=3, hidden=(4,), classes=2)):
        with pytest.raises(ValueError, match="does not fit Mlp") as error:
            save_network(tmp_path / "x", wrong, variables)
        assert "'params/layers/1/kernel': got (4, 5), expected (4, " in str(error.value)
        assert "'params/layers/2/" in str(error.value)
    assert "'params/layers/2/bias': got (2,), expected no such leaf" in str(error.value)
    save_network(tmp_path / "x", CONFIG, variables)
    record = load_record(tmp_path / "x")
    record["architecture"]["fields"]["classes"] = 7
    rewritten(tmp_path / "x", record=record)
    with pytest.raises(ValueError, match=r"x does not fit .*'params/layers/2/kernel': got \(5, 2\), expected \(5, 7\)"):
        load_network(tmp_path / "x")


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"class": "Mpl", "fields": {}}, "unknown architecture 'Mpl': the nearest is 'Mlp', expected one of Mlp, Vgg"),
        ({"class": "llama", "fields": {}}, "unknown architecture 'llama': the nearest is 'Llama'"),
        ({"class": "Mlp", "fields": {"hiden": [4]}}, "unknown field of Mlp 'hiden': the nearest is 'hidden'"),
        ({"class": "Mlp", "fields": {"hidden": "wide"}}, "Mlp cannot be built from {'hidden': 'wide'}"),
        ("Mlp", "damaged record: its architecture is 'Mlp'"),
    ],
)
def test_architectures_that_cannot_be_built(tmp_path, architecture, message):
    save(tmp_path / "x", build(CONFIG).variables, {"architecture": architecture})
    with pytest.raises(ValueError, match=message):
        load_network(tmp_path / "x")


def test_a_tree_without_architecture_and_a_class_of_ones_own(tmp_path):
    class Own(Llama):
        pass

    save(tmp_path / "x", TREE)
    with pytest.raises(ValueError, match=r"x does not say its architecture: .* of your own are aligned by a recipe"):
        load_network(tmp_path / "x")
    with pytest.raises(ValueError, match=r"unknown architecture 'Own'.*; save writes the variables of networks of your own"):
        save_network(tmp_path / "y", Own(), {})

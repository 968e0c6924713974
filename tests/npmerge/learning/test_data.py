"""Examples: images, text, datasets; what is held out never overlaps what is learned from."""

import sys
import types

import numpy as np
import pytest
import tokenizers

from npmerge.learning.data import Examples, Parts, check_apart, read_examples, split
from npmerge.learning.tasks import Tasks, joined_examples
from npmerge.models import Gpt2, ResNetCifar
from npmerge.recipe.examples import Data

IMAGES = ResNetCifar(side=4)
TOKENS = Gpt2(vocabulary=256, width=8, layers=1, heads=2, hidden=8, length=5)


def test_folders_of_images_are_classes_in_the_order_of_their_names(tmp_path):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    for name, k in (("b/1.png", 0), ("a/2.png", 1), ("a/1.png", 2)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.fromarray(pixels[k]).save(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    found = read_examples(Data(path=str(tmp_path)), IMAGES, tmp_path)
    np.testing.assert_allclose(found.inputs, pixels[[2, 1, 0]] / 255, atol=1e-7)
    assert found.targets is not None and found.targets.tolist() == [0, 0, 1] and found.inputs.dtype == np.float32
    scaled = read_examples(Data(path=str(tmp_path), mean=[0.5], deviation=[0.25, 0.5, 1]), IMAGES, tmp_path)
    np.testing.assert_allclose(scaled.inputs, (pixels[[2, 1, 0]] / 255 - 0.5) / [0.25, 0.5, 1], atol=1e-6)
    smaller = read_examples(Data(path=str(tmp_path), size=(2, 3)), None, tmp_path)
    assert smaller.inputs.shape == (3, 2, 3, 3)
    (tmp_path / "b" / "2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"2\.png cannot be read as an image"):
        read_examples(Data(path=str(tmp_path)), IMAGES, tmp_path)


def test_files_that_would_be_text_are_refused_where_networks_take_no_tokens(tmp_path):
    (tmp_path / "x.npy.xz").write_bytes(b"\xfd7zXZ")
    with pytest.raises(ValueError, match=r"x\.npy\.xz would be read as text, and the network takes .*\(examples, 4, 4, 3\)"):
        read_examples(Data(path=str(tmp_path / "x.npy.xz")), IMAGES, tmp_path)


def test_arrays_of_other_names_and_pixels_say_what_to_do(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"x\.npz has no array 'inputs': got images"):
        read_examples(Data(path=str(tmp_path / "x.npz")), IMAGES, tmp_path)
    with pytest.raises(ValueError, match="inputs must be floating-point, got uint8: divide pixels by 255"):
        read_examples(Data(path=str(tmp_path / "x.npz"), inputs="images"), IMAGES, tmp_path)


def test_images_without_pillow_say_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ValueError, match="pip install pillow"):
        read_examples(Data(path=str(tmp_path)), IMAGES, tmp_path)


def test_text_is_windows_of_bytes_and_what_follows_them(tmp_path):
    (tmp_path / "text.txt").write_bytes(bytes(range(23)))
    found = read_examples(Data(path=str(tmp_path / "text.txt")), TOKENS, tmp_path)
    assert found.targets is not None
    np.testing.assert_array_equal(found.inputs, np.arange(20).reshape(4, 5))
    np.testing.assert_array_equal(found.targets, np.arange(20).reshape(4, 5) + 1)
    shorter = read_examples(Data(path=str(tmp_path / "text.txt"), length=11), None, tmp_path)
    assert shorter.inputs.shape == (2, 11)
    with pytest.raises(ValueError, match="fewer tokens than the 31 of one example"):
        read_examples(Data(path=str(tmp_path / "text.txt"), length=30), None, tmp_path)
    with pytest.raises(ValueError, match=r"inputs must have the shape \(examples, up to 5\), got \(2, 11\)"):
        read_examples(Data(path=str(tmp_path / "text.txt"), length=11), TOKENS, tmp_path)


def test_text_by_the_tokenizer_of_the_model(tmp_path):
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "c": 2}, "a"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.enable_truncation(2)
    made.enable_padding(length=7)
    (tmp_path / "model").mkdir()
    made.save(str(tmp_path / "model" / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("b c a b c")
    found = read_examples(Data(path=str(tmp_path / "text.txt"), length=2), TOKENS, tmp_path / "model")
    assert found.inputs.tolist() == [[1, 2], [0, 1]]
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        read_examples(Data(path=str(tmp_path / "text.txt"), tokenizer="model"), TOKENS, tmp_path)


class Table:
    """As much of a dataset as is read."""

    column_names = ("image", "label")

    def __getitem__(self, name):
        pixels = np.arange(2 * 16 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
        return {"image": list(pixels), "label": [1, 0]}[name]


def test_datasets_are_read_by_their_package(tmp_path, monkeypatch):
    module = types.ModuleType("datasets")
    asked = []
    module.load_dataset = lambda name, split: asked.append((name, split)) or Table()
    monkeypatch.setitem(sys.modules, "datasets", module)
    found = read_examples(Data(dataset="some/set", split="test", inputs="image", labels="label"), IMAGES, tmp_path)
    assert asked == [("some/set", "test")] and found.targets is not None and found.targets.tolist() == [1, 0]
    np.testing.assert_allclose(found.inputs.reshape(-1), np.arange(96) / 255, atol=1e-7)
    with pytest.raises(ValueError, match="unknown column of some/set 'img': the nearest is 'image'"):
        read_examples(Data(dataset="some/set", inputs="img"), IMAGES, tmp_path)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """What the package itself writes."""
    datasets = pytest.importorskip("datasets")
    image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    images = {"image": [image.fromarray(x).resize((4 + k, 4), 0) for k, x in enumerate(pixels)], "label": [1, 0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    tables = {"train": datasets.Dataset.from_dict(images, features=features)}
    datasets.DatasetDict(tables | {"test": tables["train"].select([0])}).save_to_disk("images")
    vectors = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    datasets.Dataset.from_dict({"inputs": vectors, "labels": [2, 1, 0]}).save_to_disk("vectors")
    datasets.Dataset.from_dict({"text": ["abcdef", "", "ghijk"]}).save_to_disk("text")
    return pixels, vectors


def test_datasets_that_the_package_has_saved(saved, tmp_path):
    pixels, vectors = saved
    named = {"dataset": "images", "inputs": "image", "labels": "label"}
    found = read_examples(Data(**named), IMAGES, tmp_path)
    assert found.inputs.shape == (3, 4, 4, 3) and found.targets.tolist() == [1, 0, 1]
    np.testing.assert_allclose(found.inputs[0], pixels[0] / 255, atol=1e-7)  # the others were of other sizes
    assert len(read_examples(Data(**named, split="test"), IMAGES, tmp_path).inputs) == 1
    found = read_examples(Data(dataset="vectors"), None, tmp_path)
    np.testing.assert_array_equal(found.inputs, vectors)
    assert found.inputs.dtype == np.float32 and found.targets.tolist() == [2, 1, 0]
    found = read_examples(Data(dataset="text", inputs="text", length=5), TOKENS, tmp_path)
    assert [bytes(x.astype(np.uint8)) for x in found.inputs] == [b"abcde", b"f\n\ngh"] and found.targets.shape == (2, 5)
    for given, message in (
        ({"dataset": "images", "split": "tset"}, "unknown split of images 'tset': the nearest is 'test'"),
        ({"dataset": "vectors", "split": "test"}, "vectors is one table without splits"),
        ({"dataset": "./vector"}, "vector: no such folder"),
    ):
        with pytest.raises(ValueError, match=message):
            read_examples(Data(**given), None, tmp_path)


def test_what_is_held_out_is_drawn_by_the_seed_and_copies_stay_together():
    inputs = np.repeat(np.arange(40, dtype=np.float32)[:, None], 2, 0)
    data = Examples("x", inputs, np.arange(80) % 3)
    first, second, other = split(data, 0.25, 0), split(data, 0.25, 0), split(data, 0.25, 1)
    assert first.held_out is not None and len(first.held_out.inputs) == 20 and len(first.train.inputs) == 60
    assert not set(first.train.inputs[:, 0]) & set(first.held_out.inputs[:, 0])
    np.testing.assert_array_equal(first.train.inputs, second.train.inputs)
    assert not np.array_equal(first.train.inputs, other.train.inputs)
    check_apart(first.train, first.held_out)
    with pytest.raises(ValueError, match=r"20 of its 20 inputs are in x too, such as number 0"):
        check_apart(data, first.held_out)
    assert split(data, 0, 0).held_out is None


def of_task(name: str, count: int, targets: bool = True, width: int = 2) -> Examples:
    inputs = np.arange(count * width, dtype=np.float32).reshape(count, width)
    return Examples(name, inputs, np.full(count, len(name), np.int32) if targets else None)


def test_examples_of_several_tasks_are_put_together():
    joined = joined_examples([of_task("a", 3), of_task("bb", 2)])
    assert joined.name == "a, bb" and joined.targets is not None
    np.testing.assert_array_equal(joined.targets, [1, 1, 1, 2, 2])
    np.testing.assert_array_equal(joined.inputs[3:], of_task("bb", 2).inputs)
    assert joined_examples([of_task("a", 3), of_task("bb", 2, targets=False)]).targets is None
    with pytest.raises(ValueError, match=r"one shape to be put together: got \(2,\) in a, \(5,\) in bb"):
        joined_examples([of_task("a", 3), of_task("bb", 2, width=5)])


def test_mixed_batches_hold_every_task():
    """What running statistics are re-estimated from: the first examples of the first task alone would not do."""
    tasks = Tasks(tuple(Parts(of_task(name, 20), None) for name in ("a", "bb")), seed=0)
    first, *rest = tasks.mixed(10, 3)
    assert len(rest) == 2 and set(np.asarray(first[1])) == {1, 2}
    alone = Tasks(tasks.parts[:1], seed=0)
    np.testing.assert_array_equal(alone.mixed(10, 3)[1][0], of_task("a", 20).inputs[10:])

"""Where data are looked for, and what is said where there are none."""

from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from experiments.data import CATALOGUE, find, find_cifar, load
from experiments.data.__main__ import main
from tests.experiments.data import test_mnist, test_stored
from tests.experiments.data.writers import write_binary_cifar10


@pytest.fixture
def places(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """The folder beside the checkout, and that of downloads."""
    monkeypatch.setenv("NPMERGE_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(find, "SHARED", tmp_path / "shared")
    return tmp_path / "shared", tmp_path / "cache"


def test_they_are_looked_for_beside_the_checkout_then_among_downloads(places):
    shared, cache = places
    for folder in (cache, shared):
        (folder / "cifar10").mkdir(parents=True)
        write_binary_cifar10(folder / "cifar10")
        assert load("cifar10").found == folder / "cifar10"
    (shared / "emoji_domains").mkdir()
    np.savez(shared / "emoji_domains" / "labels.npz")
    (shared / "emoji_domains" / "x32.npy.xz").write_bytes(b"")
    assert load("emoji").found == shared / "emoji_domains"


def test_a_folder_that_is_given_is_the_only_one(places, tmp_path):
    shared, _ = places
    test_mnist.write(shared / "mnist", "{name}-idx{axes}-ubyte")
    (tmp_path / "given").mkdir()
    with pytest.raises(ValueError, match=r"no MNIST in .*given: expected"):
        load("mnist", tmp_path / "given")
    assert load("mnist").found == load("mnist", shared).found == load("mnist", shared / "mnist").found == shared / "mnist"


def test_what_is_said_where_there_are_none(places):
    shared, cache = places
    with pytest.raises(ValueError, match="no CIFAR-100 in") as error:
        load("cifar100")
    assert str(error.value) == (
        f"no CIFAR-100 in {shared}/cifar100 and {cache}/cifar100: expected one of its published files or folders "
        "(cifar-100-python, cifar-100-binary, cifar-100-python.tar.gz); it comes from "
        "https://www.cs.toronto.edu/~kriz/cifar.html, for research, with citation (Krizhevsky 2009); --download fetches it"
    )
    with pytest.raises(ValueError, match=r"no PACS in .*/pacs and .*/pacs: .*; --download has no site to fetch it from$"):
        load("pacs", download=True)
    with pytest.raises(ValueError, match=r"unknown data set 'cifar': the nearest is 'cifar10+', expected one of cifar10, "):
        load("cifar")


def test_the_cache_of_the_user(monkeypatch, tmp_path):
    for name in ("NPMERGE_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert find.cache() == Path.home() / ".cache" / "npmerge" / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find.cache() == tmp_path / "npmerge" / "data"


def test_cifar_is_found_among_downloads_too(places, monkeypatch):
    _, cache = places
    monkeypatch.setattr(find, "CIFAR", cache / "none")
    assert find_cifar() is None
    (cache / "cifar10").mkdir(parents=True)
    assert find_cifar() is None  # what a download that failed leaves
    write_binary_cifar10(cache / "cifar10")
    assert find_cifar() == cache / "cifar10"


def test_the_command_says_what_is_there(places, tmp_path, monkeypatch):
    shared, _ = places
    (shared / "pacs").mkdir(parents=True)
    domain, y = np.repeat(np.arange(4), 35), np.tile(np.repeat(np.arange(7), 5), 4)
    names = {"domains": np.array(list("abcd")), "classes": np.array(list("tuvwxyz"))}
    test_stored.write_grid(shared / "pacs", domain=domain, y=y, **names)
    app = typer.Typer()
    app.command()(main)
    found = CliRunner().invoke(app, ["pacs", "digits"])
    assert found.exit_code == 0
    assert found.output.splitlines() == [
        f"pacs: PACS, {shared}/pacs: 112 images of 32 x 32 x 3 for training, 28 for testing",
        "digits: digits, scikit-learn: 1,437 images of 8 x 8 x 1 for training, 360 for testing",
    ]
    missing = CliRunner().invoke(app, ["mnist", "digits"])
    assert missing.exit_code == 1
    assert "mnist: no MNIST in " in missing.output
    assert "digits: digits, scikit-learn" in missing.output


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_set_says_where_it_comes_from(name):
    known = CATALOGUE[name]
    assert known.source
    assert known.bundled or known.readers
    assert all(remote.hash.startswith("md5:") and len(remote.hash) == 36 for remote in known.remote)
    assert all(remote.url.startswith("https://") for remote in known.remote)

"""The README's tasks run from its text, every block of the README and the guide has its test, and what they name is there."""

import json
import re
import tomllib

import numpy as np
import pytest

import npmerge as nm
from npmerge.models import Gpt2, build
from tests.docs.pages import FILES, PAGES, ROOT, blocks, examples, follow, run
from tests.npmerge.folder.folders import words, write_model

README = PAGES["README"]
WORDS = ["<unk>", "red", "blue", "green", "grey", "pink"]
TRIED = {
    "README": (3, {"commands", "fine-tunes", "fine-tunes-merged", "fine-tunes-learned", "seeds"}),
    "library": (1, set()),
    "any-network": (5, set()),  # the last in tests/npmerge/checkpoint/torch/test_torch_examples.py
    "alignments": (1, set()),
    "merges": (1, set()),
    "other-sizes": (1, set()),
    "accelerators": (2, set()),
    "align-checkpoints": (1, {"align"}),
    "recipes": (0, {"recipe", "merge"}),
    "learning-by-recipe": (0, {"learned", "learn", "tasks"}),  # the last in tests/npmerge/learning/test_goals.py
    "formats": (0, {"convert"}),
}
"""How many blocks of Python of each page and which of its recipes and commands run in a test of this folder."""


def test_every_block_has_its_test():
    found = {page: (len(examples(page)), set(blocks(page))) for page in PAGES}
    assert {page: what for page, what in found.items() if what != (0, set())} == TRIED
    for page, text in PAGES.items():
        assert len(re.findall(r"```(?:sh|yaml)\n", text)) == len(blocks(page)), f"a block of {page} has no name"


@pytest.fixture
def fine_tunes(tmp_path, monkeypatch):
    """The working directory, with a small GPT-2, two models near it and a text."""
    monkeypatch.chdir(tmp_path)
    config = Gpt2(vocabulary=len(WORDS), width=8, layers=2, heads=2, hidden=16, length=64)
    base = nm.checkpoint.to_named(config, build(config, seed=0).variables)
    base.pop("lm_head.weight")  # the embedding, as in files of GPT-2
    described = {"model_type": "gpt2", "vocab_size": len(WORDS), "n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 64}
    described |= {"n_inner": 16, "activation_function": "gelu_new"}
    rng = np.random.default_rng(0)
    for name, size in {"base": 0, "code": 0.3, "prose": 0.3}.items():
        moved = {key: np.float32(x + size * rng.standard_normal(x.shape)) for key, x in base.items()}
        write_model(tmp_path / name, moved, described, tokenizer__json=words(WORDS))
    (tmp_path / "text.txt").write_text(" ".join(rng.choice(WORDS[1:3], 2000).tolist()))
    return tmp_path


def test_two_fine_tunes_are_merged_by_a_recipe_and_reported(fine_tunes):
    found = blocks("README")
    (fine_tunes / "recipe.yml").write_text(found["fine-tunes"])
    follow(found["fine-tunes-merged"])
    assert (fine_tunes / "merged" / "report.html").is_file()
    (fine_tunes / "recipe.yml").write_text(f"{found['fine-tunes']}\n{found['fine-tunes-learned']}")
    follow(found["fine-tunes-merged"].replace(" merged", " learned"))
    rows = json.loads((fine_tunes / "learned" / "history.json").read_text())["evaluation"]["networks"]
    assert rows["learned"]["loss"] < rows["start"]["loss"]


@pytest.fixture(scope="module")
def session() -> tuple[dict[str, object], list[str]]:
    """The three blocks of Python one after another: the names that they make, and what each prints."""
    given: dict[str, object] = {}
    return given, [run(example, given) for example in examples("README")]


def test_two_networks_of_different_seeds_are_averaged(session):
    _, (_, printed, _) = session
    moved, judged = printed.split("\n", 1)
    assert float(moved) < 1e-5
    before, after = (float(x) for x in re.findall(r"loss=([\d.]+)", judged))
    assert after < 0.6 * before


def test_coefficients_are_learned_with_a_loss_of_ones_own_beside_the_control(session):
    _, (_, _, printed) = session
    losses = {line.split(" ")[0]: float(re.search(r"loss=([\d.]+)", line)[1]) for line in printed.splitlines()}
    assert list(losses) == ["average", "learned", "fine-tuned"]
    assert max(losses["learned"], losses["fine-tuned"]) < losses["average"]


def test_files_of_networks_are_aligned(session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given, _ = session
    for name in "ab":
        nm.checkpoint.save_network(f"{name}.safetensors", given["config"], given[name], {})
    follow(blocks("README")["seeds"])
    assert (tmp_path / "aligned" / "b.safetensors").is_file()


def test_the_commands_are_the_ones_that_ci_runs():
    assert blocks("README")["commands"].splitlines() == [
        "pip install -e . && npmerge demo",
        'pip install -e ".[test]" && pytest',
    ]


def test_every_extra_is_told():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = README.split("| extra | for |\n|---|---|\n")[1].split("\n\n")[0]
    told = re.findall(r"`([a-z-]+)`", table)
    assert sorted(told) == sorted(project["optional-dependencies"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_folder_and_file_it_names_exists(path):
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:alignment|npmerge|experiments|tests|docs)/(?:[\w/]+(?:\.\w+)?)?)`", text):
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert (path.parent / link).exists(), link


def test_every_page_of_the_guide_is_linked():
    linked = re.findall(r"^\| \[[^]]+\]\(docs/guide/([\w-]+)\.md\)", README, re.M)
    assert sorted(linked) == sorted(path.stem for path in FILES if path.parent.name == "guide")


def close_to(number: str, page: str) -> bool:
    """Whether a number is one of a page's, rounded to as many places."""
    places = len(number.split(".")[1])
    candidates = (float(x) for x in re.findall(r"\d+\.\d+(?:e[-+]\d+)?", page))
    return any(abs(x - float(number)) < 0.5001 * 10**-places for x in candidates)


@pytest.mark.parametrize("page", ["README", "library"])
def test_what_follows_a_merge_is_found_where_one_begins(page):
    """Networks go to files and barriers into figures, and the alignment that examples show is not the one to begin with."""
    named = ["nm.checkpoint.save", "`nm.barrier", "ActivationMatching"]
    named += ["barrier_figure", "load_record"] if page == "library" else []
    assert [name for name in named if name not in PAGES[page]] == []


def test_numbers_are_those_of_the_pages_they_link():
    parts = README.split("## Which way")[1].split("## Read on")[0]
    for paragraph in re.split(r"\n(?=[-|\n])", parts):
        links = re.findall(r"\((experiments/[^)]+)\)", paragraph)
        text = "\n".join((ROOT / link).read_text(encoding="utf-8") for link in links)
        for number in re.findall(r"\d+\.\d+", re.sub(r"\([^)]*\)", "", paragraph)):
            assert close_to(number, text), f"{number} is not in {links}"

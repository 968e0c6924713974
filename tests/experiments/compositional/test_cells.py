"""What the parts of the data hold: half of the base's of its own domain, and all domains in the other half."""

import dataclasses

import numpy as np
import pytest

from experiments.compositional import generation, images
from experiments.compositional.cells import Part
from experiments.compositional.presets import PRESETS
from experiments.compositional.settings import Sizes
from experiments.compositional.texts import DRAWS, text_cells
from experiments.compositional.xnli import made_corpus

IMAGES, TEXT, MADE = PRESETS["test"].tasks


@pytest.fixture(scope="module")
def pool():
    return images.read_pool("digits")


def test_a_part_is_filled_by_its_own_examples():
    part = Part({"x": np.arange(3)}, np.arange(3))
    assert part.filled(7).inputs["x"].tolist() == [0, 1, 2, 0, 1, 2, 0] and part.filled(2).targets.tolist() == [0, 1]


def test_the_base_learns_what_belongs_together_in_all_domains(pool):
    cells = images.image_cells(IMAGES, pool, 0)
    forms = pool.images.reshape(len(pool.images), -1)
    places = {bytes(x): k for k, x in enumerate(forms.astype(np.float32))}
    for part, most in ((cells.base, 256), (cells.base_validation, 12)):
        pairs = part.inputs["category"] == 4
        assert len(part) == most and pairs.sum() == most // 2
        assert set(part.targets[pairs]) == {8} and part.targets[~pairs].max() <= 7
        first, second = (np.array([places[bytes(x)] for x in part.inputs[name]]) for name in ("x", "partner"))
        assert (pool.groups[first] == pool.groups[second]).all() and not pool.tested[first].any()
        assert (pool.domains[first] != pool.domains[second])[pairs].all() and (pool.domains[first[~pairs]] == 0).all()
        assert most < 256 or set(pool.domains[first[pairs]]) == set(pool.domains[second[pairs]]) == {0, 1, 2, 3}


def test_an_image_without_a_group_belongs_to_itself(pool):
    alone = pool._replace(groups=np.arange(len(pool.images)))
    part = images.pairs(alone, 50, np.random.default_rng(0))
    assert (part.inputs["x"] == part.inputs["partner"]).all() and len({bytes(x) for x in part.inputs["x"]}) > 40


def test_pairs_of_sentences_say_the_same_in_two_languages():
    corpus = made_corpus()
    said = [dict(x) for x in corpus.same(np.array([0, 5]))]
    assert len(said) == 2 * 3 * 2 and all(set(x) == {"en", "sw", "ur", "my"} for x in said)
    for texts in said:  # a language is a way to write words
        assert texts["sw"] == " ".join(f"ki{word}" for word in texts["en"].split())
    part = text_cells(TEXT, corpus, 0).base
    pairs = part.inputs["category"] == len(corpus.tasks)
    assert pairs.sum() == (~pairs).sum() and (part.inputs["x"] == part.inputs["partner"]).all(1)[~pairs].all()
    assert (part.inputs["x"] != part.inputs["partner"]).any(1)[pairs].all()
    assert len({bytes(x) for x in part.inputs["x"][pairs]}) > 0.5 * pairs.sum()  # not the same few


def test_what_is_drawn_about_a_sentence_is_drawn_several_times_for_training():
    task = dataclasses.replace(TEXT, sizes=Sizes(cell=10_000, validation_cell=10_000, base=10_000))
    cells = text_cells(task, made_corpus(), 0)
    for parts in cells.held_in.values():  # of 60 premises, three rows each, 12 are for tests, 7 for learning, 10 for choices
        assert [len(part) for part in parts] == [DRAWS * 31 * 3, 7 * 3, 10 * 3]


def test_the_base_of_a_flow_knows_every_domain_but_its_own_categories_alone(pool):
    cells, _ = generation.generation_cells(MADE, pool, 0)
    asked = cells.base.inputs["category"] < 4
    assert asked.sum() == (~asked).sum() == len(asked) // 2
    assert set(cells.base.inputs["domain"][asked]) == {0} and set(cells.base.inputs["domain"][~asked]) == {0, 1, 2, 3}


def test_the_base_of_sentences_has_more_than_a_cell():
    task = dataclasses.replace(TEXT, sizes=Sizes(cell=20, validation_cell=10, base=400))
    cells = text_cells(task, made_corpus(), 0)
    counts = np.bincount(cells.base.inputs["category"])
    assert counts.tolist() == [50, 50, 50, 50, 200] and len(cells.base) == 400
    for parts in cells.held_in.values():
        assert [len(part) for part in parts] == [20, 10, 10]


@pytest.mark.parametrize("task", [IMAGES, TEXT], ids=lambda task: task.name)
def test_tests_at_home_are_of_the_base_s_domain(pool, task):
    cells = images.image_cells(task, pool, 0) if task is IMAGES else text_cells(task, made_corpus(), 0)
    assert [(cell.category, cell.domain) for cell in cells.home] == [(k, 3) for k in range(len(cells.grid.categories))]
    trained = {bytes(x) for x in cells.base.inputs["x"]}
    for cell, part in cells.home.items():
        assert (part.inputs["category"] == cell.category).all()
        assert task is TEXT or not trained & {bytes(x) for x in part.inputs["x"]}


def _cells(task, pool, seed):
    if task.setting == "text":
        return text_cells(task, made_corpus(), seed)
    return (
        images.image_cells(task, pool, seed) if task.setting == "images" else generation.generation_cells(task, pool, seed)[0]
    )


@pytest.mark.parametrize("task", [IMAGES, TEXT, MADE], ids=lambda task: task.name)
def test_tests_are_the_same_for_every_seed_and_no_more_than_asked_for(pool, task):
    whole = dataclasses.replace(task, sizes=dataclasses.replace(task.sizes, test=1000))
    some = dataclasses.replace(task, sizes=dataclasses.replace(task.sizes, test=3))
    for changed, most in ((whole, 1000), (some, 3)):
        one, two = (_cells(changed, pool, seed) for seed in range(2))
        for cell, part in one.test.items():
            assert (part.targets == two.test[cell].targets).all() and len(part) <= most
            assert most == 1000 or len(part) == 3
            if task.setting != "text":  # tokens hang on what the seed has for training
                assert (part.inputs["x"] == two.test[cell].inputs["x"]).all()

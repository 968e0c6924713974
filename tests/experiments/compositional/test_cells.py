"""What the parts of the data hold: half of the base's of its own domain, and all domains in the other half."""

import dataclasses

import numpy as np
import pytest

from experiments.compositional import generation, images
from experiments.compositional.cells import Part
from experiments.compositional.presets import PRESETS
from experiments.compositional.settings import Sizes
from experiments.compositional.texts import text_cells
from experiments.compositional.xnli import made_corpus

IMAGES, TEXT, MADE = PRESETS["test"].tasks


@pytest.fixture(scope="module")
def pool():
    return images.read_pool("digits")


def test_a_part_is_filled_by_its_own_examples():
    part = Part({"x": np.arange(3)}, np.arange(3))
    assert part.filled(7).inputs["x"].tolist() == [0, 1, 2, 0, 1, 2, 0] and part.filled(2).targets.tolist() == [0, 1]


def test_the_base_learns_the_styles_of_all_domains(pool):
    cells = images.image_cells(IMAGES, pool, 0)
    for part, most in ((cells.base, 256), (cells.base_validation, 64)):
        styles = part.inputs["category"] == 4
        assert len(part) == most and styles.sum() == most // 2
        assert set(part.targets[styles]) == {8, 9, 10, 11} and part.targets[~styles].max() == 7
        forms = pool.images.reshape(len(pool.images), -1)
        upright = {bytes(x) for x in forms[pool.domains == 0]}
        assert {bytes(x) for x in part.inputs["x"][~styles]} <= upright
        assert not {bytes(x) for x in forms[pool.tested]} & {bytes(x) for x in part.inputs["x"]}


def test_the_base_of_a_flow_knows_every_domain_but_its_own_categories_alone(pool):
    cells, _ = generation.generation_cells(MADE, pool, 0)
    asked = cells.base.inputs["category"] < 4
    assert asked.sum() == (~asked).sum() == len(asked) // 2
    assert set(cells.base.inputs["domain"][asked]) == {0} and set(cells.base.inputs["domain"][~asked]) == {0, 1, 2, 3}


def test_the_base_of_sentences_has_more_than_a_cell():
    task = dataclasses.replace(TEXT, sizes=Sizes(cell=20, validation_cell=10, base=400))
    cells = text_cells(task, made_corpus(), 0)
    counts = np.bincount(cells.base.inputs["category"])
    assert counts.tolist() == [80, 80, 80, 80, 80] and len(cells.base) == 400
    for parts in cells.held_in.values():
        assert [len(part) for part in parts] == [20, 20, 10]


@pytest.mark.parametrize("task", [IMAGES, TEXT], ids=lambda task: task.name)
def test_tests_at_home_are_of_the_base_s_domain(pool, task):
    cells = images.image_cells(task, pool, 0) if task is IMAGES else text_cells(task, made_corpus(), 0)
    assert [(cell.category, cell.domain) for cell in cells.home] == [(k, 3) for k in range(4)]
    trained = {bytes(x) for x in cells.base.inputs["x"]}
    for cell, part in cells.home.items():
        assert (part.inputs["category"] == cell.category).all()
        assert task is TEXT or not trained & {bytes(x) for x in part.inputs["x"]}

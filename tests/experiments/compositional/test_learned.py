"""What learned merges and their controls begin from and learn from."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

import npmerge as nm
from experiments.compositional.command import prepared
from experiments.compositional.learned import Learner, start_of
from experiments.compositional.presets import PRESETS
from experiments.compositional.settings import ADA_MERGING, CONTROLS, FEATURES, NP_MERGE


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    return Learner(prepared(PRESETS["test"].task("digits"), tmp_path_factory.mktemp("parents"))(0))


@pytest.mark.parametrize("method", CONTROLS)
def test_a_control_begins_where_the_learned_merge_does(learner, method):
    merge, _ = learner._merge(method)
    begun = merge.apply(merge.init(learner.stack), learner.stack)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), begun, start_of(CONTROLS[method])(learner.stack))
    assert learner._merge(CONTROLS[method]) == (None, learner.objectives[method])
    assert isinstance(start_of(CONTROLS[method]), nm.TaskArithmetic if method == ADA_MERGING else nm.Average)


def test_features_see_as_many_examples_in_a_step(learner):
    cells, size = 4, PRESETS["test"].task("digits").learning.batch
    (inputs, targets), *_ = itertools.islice(learner._batches(learner.objectives[NP_MERGE]), 1)
    assert len(targets) == len(inputs["x"]) == cells * size and set(inputs["category"]) == set(range(cells))
    turns = list(itertools.islice(learner._batches(learner.objectives[FEATURES]), cells))
    for k, (inputs, places) in enumerate(turns):
        assert len(inputs["x"]) == cells * size and set(inputs["category"]) == set(np.asarray(places).tolist()) == {k}


@pytest.mark.parametrize(("rate", "moved"), [(0.01, True), (1e9, False)])
def test_the_start_is_kept_where_no_rate_is_better(learner, monkeypatch, rate, moved):
    learning = dataclasses.replace(
        learner.case.task.learning, control_rates=(rate,), coarse_rates=(rate,), fine_rates=(rate,), further=0
    )
    monkeypatch.setattr(learner.case, "task", dataclasses.replace(learner.case.task, learning=learning))
    control = CONTROLS[NP_MERGE]
    found = learner.learnt(control)
    start = start_of(control)(learner.stack)
    equal = [np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (found.variables, start)), strict=True)]
    assert found.moved == moved and all(equal) != moved
    assert (found.scores == learner.case.validated(start)) != moved

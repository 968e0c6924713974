"""Values of parameters: scalars, lists over depth and filters."""

import re

import numpy as np
import pytest

from npmerge.recipe.settings import Filter, SettingError, read_setting


def test_lists_are_interpolated_over_depth():
    values = [0, 0.5, 0.3, 0.7, 1]
    (clause,) = read_setting(values).clauses
    for depth in np.linspace(0, 1, 24):
        np.testing.assert_allclose(clause.at(depth), np.interp(depth, np.linspace(0, 1, 5), values), rtol=0, atol=1e-15)


def test_ends_of_a_list_are_met_exactly():
    (clause,) = read_setting([0.1, 0.2, 0.7]).clauses
    assert (clause.at(0.0), clause.at(0.5), clause.at(1.0)) == (0.1, 0.2, 0.7)


def test_flags_switch_rather_than_interpolate_and_may_be_0_and_1():
    (clause,) = read_setting([True, False]).clauses
    assert [clause.at(depth, bool) for depth in (0.0, 0.9, 1.0)] == [True, True, False]
    assert read_setting(1).clauses[0].at(0.0, bool) is True


def test_integers_are_rounded():
    (clause,) = read_setting([1, 4]).clauses
    assert [clause.at(depth, int) for depth in (0.0, 0.4, 1.0)] == [1, 2, 4]


def test_clauses_hold_for_the_tensors_of_their_filters_in_their_order():
    setting = read_setting([{"filter": "mlp.up", "value": 1}, {"filter": "mlp", "value": 2}, {"value": 3}])
    held = [[clause.at(0.0) for clause in setting.clauses if clause.holds(name)] for name in ("x.mlp.up.weight", "x.mlp.down")]
    assert held == [[1, 2, 3], [2, 3]]


def test_without_a_default_other_tensors_have_no_value():
    (clause,) = read_setting({"filter": "mlp", "value": 1}).clauses
    assert clause.holds("mlp.up") and not clause.holds("norm")


@pytest.mark.parametrize(
    ("text", "held"),
    [("mlp", True), ("*", True), ("re:^model\\.layers\\.\\d+\\.mlp", True), ("re:^mlp", False), (".*", False), ("x(", False)],
)
def test_filters_are_parts_of_names_or_regular_expressions(text, held):
    assert Filter(text).matches("model.layers.3.mlp.weight") is held


def test_numbers_that_yaml_takes_for_text_are_numbers():
    assert read_setting(["1e-1", 2]).clauses[0].values == (0.1, 2)


@pytest.mark.parametrize(
    ("raw", "path", "words"),
    [
        ("much", (), "expected a number, true or false, got 'much'"),
        (None, (), "got None"),
        ([], (), "empty list"),
        ([1, "x"], (1,), "got 'x'"),
        ([1, True], (), "numbers only or true and false only"),
        ([[1, 2]], (0,), "got [1, 2]"),
        ([{"value": 1}, {"filter": "a", "value": 2}], (0,), "never reached"),
        ([{"filter": "*", "value": 1}, {"value": 2}], (0,), "never reached"),
        ([{"filter": "a", "value": 1}, 2], (1,), "beside it"),
        ({"filtre": "a", "value": 1}, ("filtre",), "the nearest is 'filter'"),
        ({"filter": "a"}, (), "expected a value"),
        ({"filter": 3, "value": 1}, ("filter",), "expected a part of a name, got 3"),
        ({"filter": "", "value": 1}, ("filter",), "an empty one"),
        ([{"filter": "re:(", "value": 1}], (0, "filter"), "no regular expression"),
        ([{"filter": "a", "value": [0, "x"]}], (0, "value", 1), "got 'x'"),
    ],
)
def test_what_is_no_setting_is_refused_where_it_stands(raw, path, words):
    with pytest.raises(SettingError, match=re.escape(words)) as caught:
        read_setting(raw)
    assert caught.value.path == path

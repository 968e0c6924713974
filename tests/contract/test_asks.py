"""What methods and statistics say they ask is what they ask."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import npmerge as nm
from npmerge import METHODS, Merge, Stack
from npmerge.catalogue import Asks, asks
from npmerge.cli import app
from npmerge.statistics.likelihood import KINDS
from tests.contract.test_methods import KEY, case_of, methods, stack_of, stats_for

STATISTICS = sorted(
    {s for method in METHODS for s in case_of(method).merge.needs} | {nm.NodeMoments, nm.JointMoments}, key=lambda s: s.__name__
)


def begins(merge: Merge, stack: Stack, **given) -> None:
    """`init`, traced only where that is enough."""
    given = {"stats": stats_for(merge, stack), "key": KEY} | given
    try:
        jax.eval_shape(lambda s: merge.init(s, **given), stack)
    except jax.errors.JAXTypeError:  # it computes on the host
        merge.init(stack, **given)


def refused(merge: Merge, stack: Stack, reason: str, **given) -> bool:
    try:
        begins(merge, stack, **given)
    except ValueError as error:
        return reason in str(error)
    return False


def sized(merge: Merge, models: int) -> Merge:
    """For another number of models: weights that fit."""
    if getattr(merge, "weights", None) is None:
        return merge
    return dataclasses.replace(merge, weights=tuple(range(1, models + 1)))


@methods
def test_the_base(method):
    case = case_of(method)
    stack, base = stack_of(case, case.models[0]), asks(method).base
    bare = Stack(stack.params)
    if isinstance(base, str):
        (option,) = base.split()[1:]
        assert not refused(dataclasses.replace(case.merge, **{option: False}), bare, "base")
        begins(dataclasses.replace(case.merge, **{option: False}), bare)
        assert refused(dataclasses.replace(case.merge, **{option: True}), bare, "needs a base")
    elif base:
        assert refused(case.merge, bare, "needs a base")
    else:
        begins(case.merge, bare)


@methods
def test_the_number_of_models(method):
    case, (least, most) = case_of(method), asks(method).models
    assert all(least <= n <= (most or n) for n in case.models)
    begins(sized(case.merge, least), stack_of(case, least))
    for n in (least - 1, (most or 0) + 1):
        if n and not least <= n <= (most or n):
            assert refused(sized(case.merge, n), stack_of(case, n), f"merges {asks(method).number}")


@methods
def test_the_key_and_the_statistics(method):
    case, told = case_of(method), asks(method)
    stack = stack_of(case, case.models[0])
    assert told.key == case.random
    assert refused(case.merge, stack, "key=", key=None) == told.key
    assert (told.data is True) == bool(told.statistics) == refused(case.merge, stack, "needs stats", stats=None)


def test_data_that_are_seen_through_a_function():
    assert {m.__name__: asks(m).data for m in METHODS if isinstance(asks(m).data, str)} == {"GreedySoup": "through score"}
    case, seen = case_of(nm.GreedySoup), []
    begins(nm.GreedySoup(lambda variables: float(len(seen.append(variables) or seen))), stack_of(case, 3))
    assert seen


def test_labels_are_asked_for_by_a_kind_of_statistic_or_through_a_function():
    found = {m.__name__: asks(m).labels for m in METHODS if asks(m).labels}
    assert found == {"GreedySoup": "through score", "Fisher": "with empirical", "MaTS": "with empirical"}
    for statistic in (nm.DiagonalFisher, nm.KroneckerFactors):
        assert {k for k in KINDS if "labels" in statistic(k).reads} == {"empirical"}
        assert statistic("empirical").reads - statistic().reads == {"labels"}


def test_mats_asks_what_its_start_asks():
    start = nm.Dare()
    assert not (nm.MaTS().needs_base or nm.MaTS().random)
    assert nm.MaTS(start=start).needs_base
    assert nm.MaTS(start=start).random
    assert nm.MaTS("identity", start=nm.Fisher()).needs == nm.Fisher.needs


@methods
def test_defaults_and_published_grids_are_accepted(method):
    case = case_of(method)
    for hyper in asks(method).hyper:
        for value in (*hyper.grid, *hyper.choices):
            assert getattr(dataclasses.replace(case.merge, **{hyper.name: value}), hyper.name) == value
        assert hyper.required or not hyper.choices or hyper.default in hyper.choices
        assert all(isinstance(v, int | float) for v in hyper.grid)
    if not any(h.required for h in asks(method).hyper):
        assert asks(method).hyper == asks(type(method())).hyper


@jax.custom_vjp
def not_differentiable(x):
    return x


def _refuse(*_):
    raise RuntimeError("differentiated")


not_differentiable.defvjp(_refuse, _refuse)


def network(variables, x):
    return jnp.tanh(not_differentiable(x @ variables["a"])) @ variables["b"]


@pytest.mark.filterwarnings("ignore:ChainOfMerges. the data leave directions open")
@pytest.mark.parametrize(
    "statistic",
    [
        *STATISTICS,
        *(functools.partial(s, k) for s in (nm.DiagonalFisher, nm.KroneckerFactors) for k in KINDS[1:]),
    ],
    ids=lambda s: getattr(s, "__name__", None) or "-".join((s.func.__name__, *s.args)),
)
def test_statistics_read_what_they_say(statistic):
    variables = [{"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}] * 2
    x, labels = jnp.ones((8, 3)), jnp.zeros(8, jnp.int32)
    graph = nm.trace(network, variables[0], x)
    smooth = lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"]  # noqa: E731
    its_graph = nm.trace(smooth, variables[0], x)

    def works(apply, graph, targets) -> bool:
        try:
            if statistic is nm.Examples:  # reads nothing until a merge does
                kept = nm.Examples().measure(apply, graph, variables, (x, targets))
                nm.ChainOfMerges().init(nm.stack_models(variables), stats={nm.Examples: kept})
            else:
                jax.eval_shape(lambda v: statistic().measure(apply, graph, v, (x, targets)), variables)
        except (RuntimeError, AttributeError, TypeError, ValueError):
            return False
        return True

    assert works(smooth, its_graph, labels)
    assert works(smooth, its_graph, None) == ("labels" not in statistic().reads)
    assert works(smooth, None, labels) == ("activations" not in statistic().reads)
    assert works(network, graph, labels) == ("gradients" not in statistic().reads)


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["methods", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_the_command_prints_all_of_it():
    lines = printed().splitlines()
    header = lines[0].split("  ")
    for method in METHODS:
        told = asks(method)
        (row,) = [line for line in lines[1 : len(METHODS) + 1] if line.startswith(f"{method.__name__} ")]
        assert row.split()[1] == {(1, None): "any", (2, None): "2", (2, 2): "2", (1, 1): "1"}[told.models]
        assert row.endswith(told.same_initialisation)
        for hyper in told.hyper:
            assert any(line.split()[:2] == [method.__name__, hyper.name] for line in lines[len(METHODS) + 1 :])
    assert "gradients" in [cell.strip() for cell in header]


def test_one_model_needs_no_common_start_and_task_vectors_do():
    told = {name: asks(getattr(nm, name)).same_initialisation for name in ("Passthrough", "Average", "TaskArithmetic")}
    assert told == {"Passthrough": "no", "Average": "or aligned", "TaskArithmetic": "yes"}


def test_the_command_prints_json():
    found = json.loads(printed("--json"))
    assert list(found) == [m.__name__ for m in METHODS]
    fields = {f.name for f in dataclasses.fields(Asks)} - {"name"}
    assert all(set(told) == fields for told in found.values())
    assert found["Slerp"]["models"] == {"least": 2, "most": 2}
    scale, = [h for h in found["TaskArithmetic"]["hyper"] if h["name"] == "scale"]  # fmt: skip
    np.testing.assert_allclose(scale["grid"], np.arange(21) / 20)
    assert (scale["default"], scale["required"], scale["choices"]) == (0.3, False, [])
    (start,) = [h["default"] for h in found["MaTS"]["hyper"] if h["name"] == "start"]
    assert start == "Average()"
    assert json.loads(printed("fisher", "--json")) == {"Fisher": found["Fisher"]}


def test_the_command_says_what_one_method_is():
    text = printed("nuslerp")
    assert text.startswith("NuSlerp\n`Slerp` with t = w_1 / (w_0 + w_1)")
    assert "exactly two models" in text
    assert "tensors with |cos omega| > 0.9995, or of norm zero, are interpolated\nlinearly" in printed("slerp")
    assert "with task_vectors" in text
    assert "in recipes: merge_method: nuslerp\nmodels:      2\nbase_model:  may be given" in text
    text = printed("dare_ties")
    assert text.startswith("in recipes: merge_method: dare_ties\nmodels:      1 or more\nbase_model:  needed")
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[4:]}
    assert rows["weight"] == ["must", "be", "given", "each", "model", "a", "number"]
    assert rows["density"] == ["1.0", "each", "model", "a", "number,", "from", "0", "to", "1"]
    found = json.loads(printed("dare_ties", "--json"))["dare_ties"]
    assert found["parameters"]["rescale"] == {"default": True, "scope": "shared", "values": "true or false", "effect": "always"}
    with pytest.raises(ValueError, match=r"np_merge is a learned merge, not a method: in Python npmerge.np_merge\(\)"):
        CliRunner().invoke(app, ["methods", "NP-Merge"], catch_exceptions=False)
    with pytest.raises(ValueError, match="unknown method 'slurp': the nearest is 'Slerp'"):
        CliRunner().invoke(app, ["methods", "slurp"], catch_exceptions=False)
    with pytest.raises(ValueError, match="unknown method 'foo': expected one of Average, WeightedAverage,"):
        CliRunner().invoke(app, ["methods", "foo"], catch_exceptions=False)

"""What every merge method keeps, over METHODS. A new method needs one entry in CASES."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignment.graph import flatten
from npmerge import (
    METHODS,
    ArceeFusion,
    Average,
    Box,
    Breadcrumbs,
    ChainOfMerges,
    ConsensusTA,
    CrossEntropy,
    Dare,
    Della,
    DiagonalFisher,
    Emr,
    Examples,
    Fisher,
    Free,
    GreedySoup,
    InputGram,
    IsoC,
    IsoCTS,
    KarcherMean,
    KroneckerFactors,
    Learned,
    LinearMerge,
    MaTS,
    Merge,
    Mlerp,
    ModelStock,
    MultiSlerp,
    NearSwap,
    NuSlerp,
    Passthrough,
    Pcb,
    PerChannel,
    PerLayer,
    PerModel,
    PerParameter,
    PerTensor,
    RegMean,
    RegMeanPlusPlus,
    Sce,
    Simplex,
    Slerp,
    Stack,
    TallMasks,
    TaskArithmetic,
    Ties,
    TsvM,
    WeightedAverage,
    Wudi,
    fit,
    stack_models,
    trace,
    weight_space,
)
from npmerge.quadratics.operators import QuadraticMerge
from npmerge.statistics.collect import SiteFactors, SiteGram
from npmerge.statistics.examples import Run
from npmerge.task_vectors.spectral import Spectral

GRANULARITIES = (PerModel(), PerLayer(), PerTensor(), PerChannel(), PerParameter())
CONSTRAINTS = (Simplex(), Box(), Free())


@dataclasses.dataclass(frozen=True)
class Case:
    """How to instantiate a method, and what it can be learned with.

    `copies` makes the instance that returns the model when merging N copies of it, if there is any; `symmetric` is one for
    which the order of the models does not matter, if there is any; `granularities` and `constraints` are those that can
    represent its coefficients for the models of this file (models of equal structure, random values); `random` methods
    need a key.
    """

    merge: Merge
    copies: Callable[[int], Merge] | None
    symmetric: Merge | None
    models: tuple[int, ...] = (2, 3)
    base: bool = False
    granularities: tuple = GRANULARITIES
    constraints: tuple = CONSTRAINTS
    random: bool = False


KEY = jax.random.key(3)
THREE: dict[str, Any] = {"models": (3,), "base": True}
UNBOUND = {"constraints": (Box(), Free())}  # the coefficients do not sum to one
BY_TENSOR = {"granularities": (PerTensor(), PerChannel(), PerParameter())}
BY_CHANNEL = {"granularities": (PerChannel(), PerParameter())}
BY_PARAMETER = {"granularities": (PerParameter(),)}
SPARSE = THREE | BY_PARAMETER | UNBOUND
W = (0.5, 0.3, 0.2)


def score(variables: Any) -> float:
    """How small the weights are: of three models of this file two are chosen."""
    return -float(sum(np.square(np.asarray(x, np.float32)).sum() for x in jax.tree.leaves(variables["params"])))


CASES: dict[type[Merge], Case] = {
    Average: Case(Average(), lambda n: Average(), Average(), models=(3,)),
    WeightedAverage: Case(
        WeightedAverage(W), lambda n: WeightedAverage((1.0,) * n), WeightedAverage((1.0, 1.0, 1.0)), models=(3,)
    ),
    GreedySoup: Case(GreedySoup(score), lambda n: GreedySoup(score), GreedySoup(score), models=(3,)),
    TaskArithmetic: Case(TaskArithmetic(0.3), lambda n: TaskArithmetic(1 / n), TaskArithmetic(0.3), base=True, **UNBOUND),
    Fisher: Case(Fisher(), lambda n: Fisher(), Fisher(), **BY_PARAMETER),
    MaTS: Case(MaTS(iterations=3), lambda n: MaTS(), MaTS(iterations=3), models=(3,)),
    ModelStock: Case(ModelStock(), lambda n: ModelStock(), ModelStock(), **THREE, **BY_TENSOR, **UNBOUND),
    Slerp: Case(Slerp(0.3), lambda n: Slerp(0.3), Slerp(0.5), models=(2,), **BY_TENSOR, **UNBOUND),
    NuSlerp: Case(
        NuSlerp((0.7, 0.3), per_channel=True),
        lambda n: NuSlerp(per_channel=True),
        NuSlerp(per_channel=True),
        models=(2,),
        **BY_CHANNEL,
        **UNBOUND,
    ),
    KarcherMean: Case(KarcherMean(W), lambda n: KarcherMean(), KarcherMean(), models=(3,), **BY_TENSOR, **UNBOUND),
    MultiSlerp: Case(
        MultiSlerp(W, task_vectors=True),
        lambda n: MultiSlerp(task_vectors=True),
        MultiSlerp(task_vectors=True),
        **THREE,
        **BY_TENSOR,
        **UNBOUND,
    ),
    Mlerp: Case(Mlerp(), lambda n: Mlerp(), Mlerp(), models=(3,), **BY_TENSOR, **UNBOUND),
    Ties: Case(Ties(0.4, 0.9), lambda n: Ties(1.0), Ties(0.4, 0.9), **SPARSE),
    Dare: Case(Dare(0.6, elect=True), lambda n: Dare(1.0, 1 / n), Dare(1.0, elect=True), random=True, **SPARSE),
    Breadcrumbs: Case(Breadcrumbs(0.6, 0.2), lambda n: Breadcrumbs(1.0, 0, 1 / n), Breadcrumbs(0.6, 0.2), **SPARSE),
    Della: Case(Della(0.6, 0.2, 0.3), lambda n: Della(1.0), Della(1.0), random=True, **SPARSE),
    Sce: Case(Sce(0.6), lambda n: Sce(), Sce(0.6), **SPARSE),
    Pcb: Case(Pcb(0.3), lambda n: Pcb(1.0), Pcb(0.3), **SPARSE),
    ConsensusTA: Case(ConsensusTA(0.4), lambda n: ConsensusTA(0, n, 1 / n), ConsensusTA(0.4), **SPARSE),
    TallMasks: Case(TallMasks(scale=0.3), lambda n: TallMasks(scale=1 / n), TallMasks(), **(THREE | UNBOUND)),
    Emr: Case(Emr(0.8), lambda n: Emr(), Emr(0.8), **SPARSE),
    IsoC: Case(IsoC(0.8), None, IsoC(0.8), **THREE),
    IsoCTS: Case(IsoCTS(0.8, common=0.4), None, IsoCTS(0.8, common=0.4), models=(2,), base=True),
    TsvM: Case(TsvM(0.8), None, TsvM(0.8), **THREE),
    Wudi: Case(Wudi(0.8), lambda n: Wudi(), Wudi(0.8), **THREE),
    NearSwap: Case(NearSwap(0.3), lambda n: NearSwap(0.3), None, models=(2,), **BY_PARAMETER),
    ArceeFusion: Case(ArceeFusion(), lambda n: ArceeFusion(), None, models=(2,), **BY_PARAMETER),
    Passthrough: Case(Passthrough(1.5), lambda n: Passthrough(), Passthrough(), models=(1,), constraints=(Free(),)),
    RegMean: Case(RegMean(0.9), lambda n: RegMean(), RegMean()),
    RegMeanPlusPlus: Case(RegMeanPlusPlus(0.9), lambda n: RegMeanPlusPlus(), RegMeanPlusPlus()),
    ChainOfMerges: Case(ChainOfMerges(), lambda n: ChainOfMerges(), ChainOfMerges()),
}


@functools.cache
def graph() -> Any:
    """Of a layer and a half: what `model` could be used by."""
    return trace(network, model(0), jnp.zeros((2, 3)))


def network(variables: Any, x: Any) -> Any:
    dense = variables["params"]["dense"]
    y = x @ dense["kernel"]
    return jax.nn.relu(y + jnp.broadcast_to(dense["bias"], y.shape)) * variables["params"]["gain"]


def run(stack: Stack, seed: int) -> Run:
    """The same inputs for all models."""
    x = jnp.asarray(np.random.default_rng(seed).standard_normal((8, 3)).astype(np.float32), np.float32)
    return Run((((x, jnp.ones(8, bool)),),) * stack.size, network, graph())


def grams(stack: Stack, seed: int) -> dict[str, SiteGram]:
    """Random ones at each site."""
    rng, found = np.random.default_rng(seed), {}
    for site in graph().sites:
        x = rng.standard_normal((stack.size, 8, flatten(model(0))[site.path].shape[0]))
        found[site.name] = SiteGram(jnp.full(stack.size, 8.0), jnp.asarray(x.swapaxes(1, 2) @ x / 8, jnp.float32), site)
    return found


def factors(stack: Stack, seed: int) -> dict[str, SiteFactors]:
    """Random ones at each site; those of the gradients are of as many columns as the weights have."""
    rng, found = np.random.default_rng(seed + 1), {}
    for name, g in grams(stack, seed).items():
        x = rng.standard_normal((stack.size, 8, flatten(model(0))[g.site.path].shape[1]))
        found[name] = SiteFactors(g.samples, g.gram, jnp.asarray(x.swapaxes(1, 2) @ x / 8, jnp.float32), g.site)
    return found


STATISTICS: Mapping[type, Callable[[Stack, int], Any]] = {
    KroneckerFactors: factors,
    InputGram: grams,
    Examples: run,
    DiagonalFisher: lambda stack, seed: random_like(stack.params, seed, lambda rng, shape: rng.uniform(0.1, 2.0, shape)),
}


def case_of(method: type[Merge]) -> Case:
    if method not in CASES:
        pytest.fail(f"{method.__name__} is in METHODS but not in CASES of {__file__}: say how to instantiate it")
    return CASES[method]


def random_like(tree: Any, seed: int, draw: Callable) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(draw(rng, x.shape), jnp.float32), tree)


def on_the_host(f: Callable, tree: Any) -> Any:
    """What a function of NumPy makes of every leaf: each operation of JAX would be compiled for each shape."""

    def leaf(x: Any) -> jax.Array:
        made = f(np.asarray(x))
        return jnp.asarray(made, made.dtype)

    return jax.tree.map(leaf, tree)


def model(seed: int, dtype: Any = jnp.float32) -> Any:
    """Kernels, biases, a scalar, a list, and running statistics. All positive on average: Slerp's angles stay acute."""
    rng = np.random.default_rng(seed)
    shapes = {
        "params": {"dense": {"kernel": (3, 4), "bias": (4,)}, "blocks": [{"scale": (4,)}], "gain": ()},
        "batch_stats": {"norm": {"var": (4,)}},
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape) + 1, dtype), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )


def stack_of(case: Case, n: int, dtype: Any = jnp.float32, *, copies: bool = False) -> Stack:
    models = [model(0 if copies else k, dtype) for k in range(n)]
    return stack_models(models, model(99, dtype) if case.base else None)


def stats_for(merge: Merge, stack: Stack, seed: int = 5) -> dict[type, Any]:
    for needed in merge.needs:
        if needed not in STATISTICS:
            pytest.fail(f"{merge} needs {needed.__name__}: say in STATISTICS of {__file__} how to make one")
    return {needed: STATISTICS[needed](stack, seed) for needed in merge.needs}


def sizes() -> list:
    return [pytest.param(m, n, id=f"{m.__name__}-{n}") for m in METHODS for n in (CASES[m].models if m in CASES else (2,))]


def same_apply(merge: Merge) -> Merge:
    """A value with the same `apply`, equal for all methods that share it: it is compiled once for all of them.

    Theta and what is expected come from the merge itself: an `apply` that knew more would give something else, and fail.
    """
    if isinstance(merge, Learned):
        return dataclasses.replace(merge, start=same_apply(merge.start))
    if isinstance(merge, Spectral):
        return dataclasses.replace(merge, scale=1.0)  # which theta holds
    if type(merge).apply is QuadraticMerge.apply:
        return RegMean()
    if type(merge).apply is not LinearMerge.apply:
        return merge
    return TaskArithmetic() if merge.needs_base else Average()


@functools.partial(jax.jit, static_argnums=0)
def _applied(merge: Merge, theta: Any, stack: Stack) -> Any:
    return merge.apply(theta, stack)


def closed_form(merge: Merge, stack: Stack, stats: Any) -> Any:
    """`merge(stack, stats=stats)`, compiled as one piece."""
    return _applied(same_apply(merge), merge.init(stack, stats=stats, key=KEY), stack)


methods = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
methods_and_sizes = pytest.mark.parametrize(("method", "n"), sizes())


def test_every_method_is_in_the_table():
    missing = [m.__name__ for m in METHODS if m not in CASES]
    assert not missing, f"add {missing} to CASES of {__file__}"
    assert set(CASES) == set(METHODS), "CASES has entries that are not in METHODS"
    for method, case in CASES.items():
        copies = case.copies and case.copies(case.models[0])
        assert {type(m) for m in (case.merge, copies, case.symmetric) if m is not None} == {method}


def test_every_method_is_a_file_of_at_most_eighty_lines():
    def lines(method):
        """Without its example, the line that heads it and the one that stands before."""
        example = inspect.getdoc(method).partition("\n\nExample:\n")[2]
        return len(inspect.getsource(inspect.getmodule(method)).splitlines()) - len(example.splitlines()) - 2

    assert {method.__name__: lines(method) for method in METHODS if lines(method) > 80} == {}


@methods_and_sizes
def test_copies_of_a_model_give_the_model(method, n):
    case = case_of(method)
    if case.copies is None:
        pytest.skip("copies of a model are not the model: what is merged is one of its spectrum")
    stack, merge = stack_of(case, n, copies=True), case.copies(n)
    merged = closed_form(merge, stack, stats_for(merge, stack))
    chex.assert_trees_all_equal_shapes_and_dtypes(merged, model(0))
    chex.assert_trees_all_close(merged, model(0), rtol=5e-7, atol=1e-6)


@methods_and_sizes
def test_order_of_models_does_not_matter(method, n):
    case = case_of(method)
    if case.symmetric is None:
        pytest.skip("not a symmetric method")
    stack, merge = stack_of(case, n), case.symmetric
    stats = stats_for(merge, stack)
    turned = on_the_host(lambda x: np.roll(x, 1, axis=0), (stack.params, stats))
    merged = closed_form(merge, Stack(turned[0], stack.base), turned[1])
    chex.assert_trees_all_close(merged, closed_form(merge, stack, stats), rtol=1e-6, atol=1e-6)


@methods_and_sizes
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=["float16", "bfloat16"])
def test_structure_and_dtype_are_kept_and_rounding_happens_once(method, n, dtype):
    """Under strict promotion: what passes it promotes nothing by itself, so gives the same under any other."""
    case = case_of(method)
    stack = stack_of(case, n, dtype)
    stats = stats_for(case.merge, stack)
    merged = closed_form(case.merge, stack, stats)
    chex.assert_trees_all_equal_shapes_and_dtypes(merged, model(0, dtype))
    wide = on_the_host(lambda x: x.astype(np.float32), stack)
    once = on_the_host(lambda x: x.astype(dtype), closed_form(case.merge, wide, stats))
    chex.assert_trees_all_equal(merged, once)


@methods_and_sizes
def test_jit_equals_eager(method, n):
    case = case_of(method)
    stack = stack_of(case, n)
    theta = case.merge.init(stack, stats=stats_for(case.merge, stack), key=KEY)
    chex.assert_trees_all_close(
        _applied(same_apply(case.merge), theta, stack), case.merge.apply(theta, stack), rtol=1e-6, atol=1e-6
    )


@methods_and_sizes
def test_running_statistics_are_averaged_whatever_the_coefficients(method, n):
    case = case_of(method)
    stack = stack_of(case, n)
    merged = closed_form(case.merge, stack, stats_for(case.merge, stack))
    expected = jax.tree.map(lambda x: np.asarray(x, np.float64).mean(0), stack.params["batch_stats"])
    chex.assert_trees_all_close(merged["batch_stats"], expected, rtol=1e-6)


@methods
def test_values_compare_and_are_traced_once(method):
    case = case_of(method)
    again = dataclasses.replace(case.merge)
    assert again is not case.merge
    assert again == case.merge
    assert hash(again) == hash(case.merge)
    assert repr(again) == repr(case.merge)
    with pytest.raises(dataclasses.FrozenInstanceError):
        case.merge.anything = 1
    traces = []

    def count(merge: Merge, theta: Any, stack: Stack) -> Any:
        traces.append(merge)
        return merge.apply(theta, stack)

    counted = jax.jit(count, static_argnums=0)
    stack = stack_of(case, case.models[0])
    theta = case.merge.init(stack, stats=stats_for(case.merge, stack), key=KEY)
    jax.eval_shape(lambda: (counted(case.merge, theta, stack), counted(again, theta, stack)))
    assert len(traces) == 1
    if not isinstance(case.merge, LinearMerge):
        return
    learned = Learned(case.merge, PerParameter(), Free())
    latents = learned.init(stack, stats=stats_for(case.merge, stack), key=KEY)
    jax.eval_shape(lambda: (counted(learned, latents, stack), counted(Learned(again, PerParameter(), Free()), latents, stack)))
    assert len(traces) == 2


@methods
def test_missing_needs_are_named(method):
    case = case_of(method)
    stack = Stack(stack_of(case, case.models[0]).params)
    if case.base:
        with pytest.raises(ValueError, match=rf"{method.__name__} needs a base.*base="):
            case.merge(stack)
    if case.random:
        with pytest.raises(ValueError, match=rf"{method.__name__} drops entries at random.*key="):
            case.merge(stack_of(case, case.models[0]))
    for needed in case.merge.needs:
        with pytest.raises(ValueError, match=rf"{method.__name__} needs stats.*collect.*{needed.__name__}"):
            case.merge(stack)


def combinations(able: bool) -> list:
    """Every linear method with every granularity and constraint, split into those that can represent it and the others."""
    found = []
    for method in METHODS:
        case = CASES.get(method)
        if case is None or not issubclass(method, LinearMerge):
            continue
        for g in GRANULARITIES:
            for c in CONSTRAINTS:
                if able == (g in case.granularities and c in case.constraints):
                    name = f"{method.__name__}-{type(g).__name__}-{type(c).__name__}"
                    found.append(pytest.param(method, g, c, id=name))
    return found


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(merge: Merge, theta: Any, stack: Stack) -> Any:
    """The merged model, and the gradients of its squared norm with respect to theta and the stack."""

    def loss(theta: Any, stack: Stack) -> Any:
        merged = merge.apply(theta, stack)
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(merged)), merged

    (_, merged), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(theta, stack)
    return merged, gradients


@pytest.mark.parametrize(("method", "granularity", "constraint"), combinations(able=True))
def test_learned_starts_at_its_start_with_finite_gradients(method, granularity, constraint):
    case = case_of(method)
    stack = stack_of(case, case.models[-1])
    stats = stats_for(case.merge, stack)
    learned = Learned(case.merge, granularity, constraint)
    assert learned.needs == case.merge.needs
    merged, gradients = value_and_gradients(same_apply(learned), learned.init(stack, stats=stats, key=KEY), stack)
    expected = closed_form(case.merge, stack, stats)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(stack))
    chex.assert_trees_all_close(merged, expected, rtol=0, atol=1e-6 * scale)
    chex.assert_tree_all_finite(gradients)
    assert any(bool(jnp.any(g != 0)) for g in jax.tree.leaves(gradients[0])), "nothing can be learned from here"


@pytest.mark.parametrize(("method", "granularity", "constraint"), combinations(able=False))
def test_learned_refuses_what_cannot_represent_the_start(method, granularity, constraint):
    case = case_of(method)
    stack = stack_of(case, case.models[-1])
    with pytest.raises(ValueError, match=r"cannot represent the start|the start has coefficients|at least two models"):
        Learned(case.merge, granularity, constraint).init(stack, stats=stats_for(case.merge, stack), key=KEY)


@methods
@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda c: type(c).__name__)
def test_gradients_are_finite_where_the_formulas_are_0_over_0(method, constraint):
    """Equal models, zero models and statistics without any information."""
    case = case_of(method)
    n = case.models[-1]
    if n == 1 and constraint == Simplex():
        pytest.skip("a simplex has two coefficients or more")
    merge = case.merge if case.copies is None else case.copies(n)
    stack = stack_of(case, n, copies=True)
    stack = stack._replace(params=stack.params | {"params": on_the_host(np.zeros_like, stack.params["params"])})
    for models in (stack_of(case, n, copies=True), stack):
        stats = on_the_host(np.zeros_like, stats_for(merge, models))
        learned = Learned(merge, PerParameter(), constraint) if isinstance(merge, LinearMerge) else merge
        theta = learned.init(models, stats=stats, key=KEY)
        merged, gradients = value_and_gradients(same_apply(learned), theta, models)
        chex.assert_tree_all_finite((theta, merged, gradients))
        chex.assert_trees_all_close(merged, closed_form(merge, models, stats), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", [m for m in METHODS if not issubclass(m, LinearMerge)], ids=lambda m: m.__name__)
def test_gradients_of_what_is_no_choice_of_coefficients_reach_the_models(method):
    case = case_of(method)
    stack = stack_of(case, case.models[-1])
    theta = case.merge.init(stack, stats=stats_for(case.merge, stack), key=KEY)
    _, gradients = value_and_gradients(same_apply(case.merge), theta, stack)
    chex.assert_tree_all_finite(gradients)
    assert all(bool(jnp.any(g != 0)) for g in jax.tree.leaves(gradients[1].params["params"])), "a model without influence"


def predict(params: Any, x: Any) -> Any:
    """Logits of four classes, of all the weights of `model`."""
    p = params["params"]
    y = x @ p["dense"]["kernel"] * p["blocks"][0]["scale"][None] + p["dense"]["bias"][None]
    return p["gain"] * y


def task(seed: int) -> tuple:
    """Inputs and labels of one of the tasks that are learned jointly."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((8, 3)).astype(np.float32), np.float32), jnp.asarray(
        rng.integers(0, 4, 8), jnp.int32
    )


TASKS = [task(seed) for seed in (70, 71)]
SMALL_THEN_LARGE = optax.sgd(lambda step: jnp.where(step < 3, 0.05, 1e3))  # built once: compiled functions know it by identity


@pytest.mark.parametrize(("method", "granularity", "constraint"), combinations(able=True))
def test_a_few_steps_never_end_above_the_start(method, granularity, constraint):
    """Of the loss over all training batches: small steps lower it, one far too large is undone."""
    case = case_of(method)
    stack = stack_of(case, case.models[-1])
    merge = Learned(case.merge, granularity, constraint)
    theta = merge.init(stack, stats=stats_for(case.merge, stack), key=KEY)
    loss = weight_space(same_apply(merge), predict, CrossEntropy())
    learn = functools.partial(fit, loss=loss, stack=stack, batches=TASKS, optimizer=SMALL_THEN_LARGE, steps=4)
    chosen = learn(theta, held_out=TASKS, every=1)
    found = chosen.history.held_out_loss
    end = learn(chosen.theta, steps=1, held_out=TASKS).history.held_out_loss[0]
    assert end == found[np.isfinite(found)].min()
    assert end <= found[0]
    if constraint == Free():  # in the others a coefficient at the end of its range hardly moves, and none leaves it
        assert end < (1 - 1e-5) * found[0]
        assert not -np.inf < found[-1] <= found[0]  # it may be NaN


ON_THE_HOST = {
    ArceeFusion, ChainOfMerges, GreedySoup, KarcherMean, Mlerp, ModelStock, MultiSlerp, NearSwap, NuSlerp, RegMeanPlusPlus,
    Slerp,
}  # fmt: skip


@methods
def test_traced_models_are_merged_or_refused_in_words(method):
    """Statistics may be constants of the traced function, as where it closes over them."""
    case = case_of(method)
    stack = stack_of(case, case.models[0])
    stats = stats_for(case.merge, stack)

    def closed(stack: Stack) -> Any:
        return case.merge(stack, stats=stats, key=KEY)

    if method in ON_THE_HOST:
        with pytest.raises(ValueError, match=rf"{method.__name__} works on the host: call it outside jit"):
            jax.eval_shape(closed, stack)
    else:
        chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(closed, stack), model(0))

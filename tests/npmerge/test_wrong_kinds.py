"""What newcomers passed in the wrong place: each gets one line that says what was got and what was expected."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import npmerge as nm
from alignment import NodeMap, SoftPermutation, WeightMatching, general, permutation
from alignment.checks import first_line
from tests.npmerge.toys import apply, batch, normal, variables

A, B = variables(0), variables(1)
PAIR = batch(0, 8)
STACK = nm.stack_models([A, B])
NP = nm.Learned(nm.Average(), nm.PerParameter(), nm.Simplex())
LOSS = nm.weight_space(NP, apply, nm.CrossEntropy())
SOFT = SoftPermutation(steps=0)


def line(graph):
    return nm.along_line(SOFT, graph, apply, nm.CrossEntropy())


@pytest.fixture(scope="module")
def graph():
    return nm.trace(apply, A, PAIR[0])


def test_measuring_refuses_batches_that_never_end(graph):
    endless = nm.shuffled(*PAIR, 4, seed=0)
    for measure in (
        lambda: nm.evaluate(apply, A, endless),
        lambda: nm.collect(apply, graph, [A, B], endless, [nm.NodeMoments()]),
        lambda: nm.reset_statistics(lambda v, x: (apply(v, x), v), A, endless),
        lambda: nm.fit(NP.init(STACK), LOSS, STACK, [PAIR], optax.sgd(0.1), steps=1, held_out=endless),
    ):
        with pytest.raises(ValueError, match=r"batches that end: got shuffled\(\.\.\.\)"):
            measure()


def test_networks_are_measured_by_their_variables():
    found = nm.fit(A, nm.fine_tuning(apply, nm.CrossEntropy()), None, [PAIR], optax.sgd(0.1), steps=0)
    for wrong, remedy in (
        (found, r"got FitResult, pass its \.theta, that of a merge as merge\.apply\(result\.theta, stack\)"),
        (nm.Repaired(A, (), (), {}), r"got Repaired, pass its \.variables"),
        (STACK, r"got Stack, merge the models first"),
    ):
        with pytest.raises(ValueError, match=f"^evaluate takes the variables of a network: {remedy}"):
            nm.evaluate(apply, wrong, [PAIR])
        for pair in ((wrong, A), (A, wrong)):
            with pytest.raises(ValueError, match=f"^path_between and barrier take the variables of a network: {remedy}"):
                nm.barrier(apply, *pair, [PAIR])
    with pytest.raises(ValueError, match=r"raised .*; if these variables are a theta, .* pass merge\.apply\(theta, stack\)$"):
        nm.evaluate(apply, NP.init(STACK), [PAIR])


def test_fit_takes_a_theta_and_a_loss():
    with pytest.raises(ValueError, match=r"^theta is what a merge starts from: got Learned, pass merge\.init\(stack\)$"):
        nm.fit(NP, LOSS, STACK, [PAIR], optax.sgd(0.1), steps=1)
    with pytest.raises(ValueError, match=r"got the objective CrossEntropy, pass weight_space\(.* or fine_tuning"):
        nm.fit(NP.init(STACK), nm.CrossEntropy(), STACK, [PAIR], optax.sgd(0.1), steps=1)


def test_modules_of_flax_in_the_wrong_place_are_told_of():
    linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    for network, given, remedy in (
        (linear, nnx.state(linear), "of a module of NNX give what it is split into"),
        (linen.Dense(3), {"params": {}}, "of a Linen module give module.apply and all its variables"),
    ):
        with pytest.raises(ValueError, match=f"^the network, on inputs of .* raised .*; {remedy}"):
            nm.evaluate(network, given, [PAIR])


def test_an_error_is_not_cut_within_a_value_of_several_lines():
    text = "argument to <bound method Net(\n    # attributes\n    size = (2, 3)\n)> is no array.\nThis typically means much"
    assert first_line(TypeError(text)) == "TypeError: argument to <bound method Net(...)> is no array."
    assert first_line(TypeError("never closed (\nmore")) == "TypeError: never closed ("


def test_batches_are_pairs(graph):
    inputs = PAIR[0]
    with pytest.raises(ValueError, match=r"must be a tuple \(inputs, targets\): got tuple of 1; one batch alone is"):
        nm.evaluate(apply, A, [(inputs,)])
    for wrong in ([inputs], PAIR, [(inputs,)]):
        for measure in (
            lambda w=wrong: nm.evaluate(apply, A, w),
            lambda w=wrong: nm.collect(apply, graph, [A, B], w, [nm.NodeMoments()]),
            lambda w=wrong: nm.reset_statistics(lambda v, x: (apply(v, x), v), A, w),
            lambda w=wrong: nm.fit(NP.init(STACK), LOSS, STACK, [PAIR], optax.sgd(0.1), steps=1, held_out=w),
            lambda w=wrong: nm.fit(NP.init(STACK), LOSS, STACK, w, optax.sgd(0.1), steps=1),
        ):
            with pytest.raises(ValueError, match=r"each batch must be a tuple \(inputs, targets\)"):
                measure()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((0, 4), np.float32), r"a batch must hold examples: got an array of shape \(0, 4\)"),
        (PAIR[0].at[2, 1].set(jnp.nan), "the inputs of a batch have 1 non-finite values of 32"),
        (np.full((8, 4), np.inf), "the inputs of a batch have 32 non-finite values of 32"),
    ],
    ids=["empty", "nan", "inf"],
)
def test_measuring_refuses_batches_that_say_nothing(graph, inputs, message):
    batches = [PAIR, (inputs, PAIR[1][: len(inputs)])]
    for measure in (
        lambda: nm.evaluate(apply, A, batches),
        lambda: nm.barrier(apply, A, B, batches),
        lambda: nm.collect(apply, graph, [A, B], batches, [nm.NodeMoments()]),
        lambda: nm.repair(apply, graph, A, [A, B], batches),
        lambda: nm.fit(NP.init(STACK), LOSS, STACK, [PAIR], optax.sgd(0.1), steps=1, held_out=batches),
    ):
        with pytest.raises(ValueError, match=message):
            measure()


def test_learning_refuses_batches_without_examples():
    empty = (PAIR[0][:0], PAIR[1][:0])
    with pytest.raises(ValueError, match="a batch must hold examples"):
        nm.fit(NP.init(STACK), LOSS, STACK, [PAIR, empty], optax.sgd(0.1), steps=2)


def test_held_out_may_be_an_iterator():
    result = nm.fit(NP.init(STACK), LOSS, STACK, [PAIR], optax.sgd(0.1), steps=2, held_out=iter([PAIR]), every=1)
    assert len(result.history.held_out_loss) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: nm.stack_models(A), "expected a list of models, got dict"),
        (lambda g: nm.stack_models(m for m in (A, B)), "expected a list of models, got generator"),
        (lambda g: nm.align(WeightMatching, g, [A, B]), "align takes"),
        (lambda g: nm.align(WeightMatching(), [A, B], g), "expected a list of models, got Graph"),
        (lambda g: nm.align(g, WeightMatching(), [A, B]), r"align takes .*, got \(Graph, WeightMatching, list\)"),
        (lambda g: nm.align(WeightMatching(), g, (m for m in (A, B))), "expected a list of models, got generator"),
        (lambda g: nm.align(WeightMatching(), g, STACK), "expected a list of models, got Stack"),
        (lambda g: nm.align(WeightMatching(), g, np.ones((2, 3))), "expected a list of models, got ndarray"),
        (lambda g: nm.align(WeightMatching(), g, [A, B], key=0), r"key must be jax.random.key\(...\) or None, got 0"),
        (lambda g: nm.align(WeightMatching(), [g, A], [A, B]), "a graph, or one for each model: got dict"),
        (lambda g: jax.jit(lambda *m: nm.align(WeightMatching(), g, m))(A, B), "runs on the host: call it outside jit"),
        (lambda g: nm.collect(apply, g, [A, B], [PAIR], nm.NodeMoments()), "a list of statistics .*, got NodeMoments"),
        (lambda g: nm.collect(apply, g, [A, B], [PAIR], "moments"), "a list of statistics .*, got str"),
        (lambda g: nm.collect(apply, g, [A, B], [PAIR], ["moments"]), "a list of statistics .*, got str in it"),
        (lambda g: nm.collect(apply, g, [A, B], [PAIR], [WeightMatching]), "got the class WeightMatching in it"),
        (lambda g: nm.collect(g, apply, [A, B], [PAIR], [nm.NodeMoments]), r"collect takes .*, got \(Graph, function"),
        (lambda g: nm.collect(apply, g, A, [PAIR], [nm.NodeMoments()]), "a list of models, got dict"),
        (lambda g: nm.Aligned(nm.Average(), WeightMatching(), g), "Aligned takes"),
        (lambda g: nm.Aligned(WeightMatching(), nm.Average(), apply), r"Aligned takes .*Average, function\)"),
        (lambda g: nm.Learned(nm.Aligned(SOFT, nm.Average(), g), NP.granularity, NP.constraint), "got Aligned$"),
        (
            lambda g: nm.checkpoint.save(A, "a.safetensors"),
            r"save takes \(path, variables, record\), got \(dict, str, NoneType",
        ),
        (lambda g: nm.trace(A, apply, PAIR[0]), r"trace takes \(apply, variables, \*inputs\), got \(dict, function\)"),
        (lambda g: nm.verify(apply, A, g, PAIR[0], key=jax.random.key(0)), r"verify takes .* got \(function, dict\)"),
        (lambda g: nm.verify(apply, g, A, PAIR[0], key=0), r"key must be jax.random.key\(...\) or None, got 0"),
        (lambda g: nm.verify_each(apply, g, A, PAIR[0], key=0), r"key must be jax.random.key\(...\) or None, got 0"),
        (
            lambda g: nm.evaluate(A, apply, [PAIR]),
            r"evaluate takes \(apply, variables, batches\), got \(dict, function, list\)",
        ),
        (
            lambda g: nm.reset_statistics(A, lambda v, x: (apply(v, x), v), [PAIR]),
            r"reset_statistics takes \(train_apply, variables, batches\), got \(dict, function, list\)",
        ),
        (lambda g: nm.weight_space(apply, NP, nm.CrossEntropy()), "weight_space takes"),
        (lambda g: nm.weight_space(NP, apply, abs), r"weight_space .*PerExample\(function\) is an objective, got \(Learned, "),
        (
            lambda g: nm.fine_tuning(apply, nm.CrossEntropy),
            r"got \(function, the class CrossEntropy\): write CrossEntropy\(\)$",
        ),
        (lambda g: nm.along_line(g, SOFT, apply, nm.CrossEntropy()), r"along_line takes .*, got \(Graph, SoftPermutation"),
        (lambda g: nm.WeightDistance(g, SOFT), "WeightDistance takes"),
        (lambda g: nm.fine_tuning(nm.CrossEntropy(), apply), "fine_tuning takes"),
        (lambda g: nm.Average()([A, B]), r"the stack of models it merges: got list, use stack_models\(models\)"),
        (lambda g: nm.Aligned(SOFT, nm.Average(), g)([A, B]), "the stack of models it merges: got list"),
        (lambda g: LOSS(NP.init(STACK), [A, B], PAIR), "the stack of models it merges: got list"),
        (lambda g: nm.WeightDistance(SOFT, g)(SOFT.init(g, [A, B]), [A, B], ()), "the stack of models it merges: got list"),
        (lambda g: nm.WeightDistance(SOFT, g)(SOFT.init(g, [A] * 3), STACK, ()), "must be of 2 models: got one of 3"),
        (lambda g: line(g)(SOFT.init(g, [A] * 3), STACK, PAIR), "theta of SoftPermutation must be of 2 models: got one of 3"),
        (
            lambda g: (m := nm.Aligned(SOFT, nm.Average(), g)).apply(m.init(nm.stack_models([A] * 3)), STACK),
            "theta of SoftPermutation must be of 2 models: got one of 3",
        ),
        (
            lambda g: nm.fit(SOFT.init(g, [A]), line(g), nm.stack_models([A]), [PAIR], optax.sgd(0.1), steps=1),
            "a line needs two models at least",
        ),
        (lambda g: nm.fit(NP.init(STACK), LOSS, STACK, [PAIR], optax.sgd(0.1), steps=1, key=3), "key must be jax.random.key"),
        (lambda g: nm.fit(NP.init(STACK), LOSS, STACK, [PAIR], optax.sgd(0.1), steps=1.5), "steps must be an integer"),
        (
            lambda g: nm.fit(NP.init(STACK), LOSS, STACK, [PAIR], 5, steps=optax.adam(0.1)),
            "steps must be an integer of 0 or more, got GradientTransformationExtraArgs$",
        ),
        (
            lambda g: nm.fit(NP.init(STACK), LOSS, STACK, [PAIR], optax.sgd(0.1), steps=1, progress=True),
            "progress is called with the step and the loss, as print can be: got True",
        ),
        (lambda g: nm.fit(NP.init(STACK), LOSS, STACK, [PAIR], 0.1, steps=1), "Optax transformation .* got float"),
        (lambda g: nm.fit(NP.init(STACK), LOSS, STACK, [PAIR], optax.adam, steps=1), "Optax transformation"),
        (
            lambda g: nm.fit(LOSS, NP.init(STACK), STACK, [PAIR], optax.sgd(0.1), steps=1),
            r"fit takes \(theta, loss, stack, batches, optimizer\), got \(WeightSpaceLoss, dict, Stack, list, ",
        ),
        (
            lambda g: nm.fit(NP.init(STACK), LOSS, [PAIR], STACK, optax.sgd(0.1), steps=1),
            "got .dict, WeightSpaceLoss, list, Stack",
        ),
        (lambda g: nm.fit(NP.init(STACK), LOSS, STACK, optax.sgd(0.1), [PAIR], steps=1), "Optax transformation .* got list"),
        (lambda g: nm.fit(NP.init(STACK), LOSS, None, [PAIR], optax.sgd(0.1), steps=1), "needs the stack of models"),
        (lambda g: nm.transport(g, dict.fromkeys(g.nodes, np.eye(6)), A), "must be a NodeMap, got ndarray"),
        (lambda g: nm.transport(g, {next(iter(g.nodes)): NodeMap(jnp.eye(6), jnp.eye(5))}, A), "expected the transpose"),
        (lambda g: permutation(np.array([0, 0, 1])), "not a permutation of 3 units"),
        (lambda g: general(np.ones((3, 3))), "invertible"),
        (lambda g: nm.TaskArithmetic(float("nan")), "scale must be a finite number, got nan"),
    ],
)
def test_one_line_each(graph, call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(graph)
    assert "\n" not in str(caught.value)


RESULT = nm.FitResult(NP.init(STACK), nm.History(np.zeros(0), np.zeros(0), np.zeros(0)), "finished")
FREE = nm.Learned(nm.Average(), nm.PerParameter(), nm.Free())
PER_LAYER = nm.Learned(nm.Average(), nm.PerLayer(), nm.Simplex())
MASKED = nm.ada_merging(plus_plus=True)


@pytest.mark.parametrize("merge", [nm.Average(), NP, nm.Slerp(), nm.Ties(), nm.IsoC()], ids=lambda m: type(m).__name__)
def test_merges_say_what_their_functions_take(merge):
    with pytest.raises(
        ValueError, match=r"^a merge needs the stack of models it merges: got list, use stack_models\(models\)$"
    ):
        merge.init([A, B])
    name = type(merge).__name__
    with pytest.raises(ValueError, match=rf"^{name}.apply takes \(theta, stack\), got \(Stack, dict\)$"):
        merge.apply(STACK, NP.init(STACK))
    with pytest.raises(ValueError, match=rf"^{name}.apply takes \(theta, stack\): got FitResult, pass its .theta$"):
        merge.apply(RESULT, STACK)


@pytest.mark.parametrize(
    ("merge", "theta", "message"),
    [
        (
            NP,
            PER_LAYER.init(STACK),
            r"not of PerParameter\(\) of these models: it has no group 'first/bias', .* \(6,\) for each",
        ),
        (PER_LAYER, NP.init(STACK), r"not of PerLayer\(.* it has no group 'first', expected one with \(\) for each model$"),
        (NP, nm.Learned(nm.Average(), nm.PerChannel(), nm.Simplex()).init(STACK), r"'first/kernel' got \(1, 6\) .* \(4, 6\)$"),
        (NP, nm.Learned(nm.Average(), nm.PerTensor(), nm.Simplex()).init(STACK), r"'first/bias' got \(\) .* expected \(6,\)$"),
        (NP, NP.init(STACK) | {"third": jnp.zeros(1)}, r"has a group 'third', expected one of first/bias, .*, \.\.\.$"),
        (NP, FREE.init(STACK), r"^theta has 2 rows for each group, Simplex\(\) of 2 models has 1: .* another constraint\?$"),
        (
            FREE,
            NP.init(STACK),
            r"^theta has 1 row for each group, Free\(\) of 2 models has 2: .* Simplex\(\), of two models\?$",
        ),
        (NP, list(NP.init(STACK).values()), "theta of Learned holds latents by group: got list"),
        (MASKED, NP.init(STACK), "theta of Learned holds latents by group: got NoneType"),
    ],
)
def test_theta_of_another_merge_is_refused(merge, theta, message):
    stack = STACK._replace(base=A)
    for use in (merge.apply, merge.coefficients):
        with pytest.raises(ValueError, match=message) as caught:
            use(theta, stack)
        assert "\n" not in str(caught.value)


def test_training_mode_is_not_a_network_of_logits():
    def train_apply(v, x):
        return apply(v, x), v

    loss = nm.weight_space(NP, train_apply, nm.CrossEntropy())
    with pytest.raises(ValueError, match=r"^apply must return logits .* got a tuple .* train_apply\(v, x\)\[0\]$"):
        nm.fit(NP.init(STACK), loss, STACK, [PAIR], optax.sgd(0.1), steps=1)


def test_statistics_of_split_nnx_modules_are_no_weights():
    """NNX calls them mean and var: task arithmetic must not extrapolate a variance below zero."""
    base = {"bn": {"var": {"value": jnp.ones(3)}, "scale": {"value": jnp.ones(3)}}}
    models = [jax.tree.map(lambda x, k=k: x * k, base) for k in (0.1, 0.3)]
    merged = nm.TaskArithmetic(2.0)(nm.stack_models(models, base=base))
    np.testing.assert_allclose(merged["bn"]["var"]["value"], 0.2, rtol=1e-6)
    np.testing.assert_allclose(merged["bn"]["scale"]["value"], 1 + 2 * (-0.9 - 0.7), rtol=1e-6)
    assert list(nm.Learned(nm.Average(), nm.PerTensor(), nm.Simplex()).init(nm.stack_models(models))) == ["bn/scale/value"]


def test_a_state_of_nnx_beside_a_dict_of_it_is_told():
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    plain, remedy = nnx.to_pure_dict(state), r"; one is a State of NNX .* give nnx\.to_pure_dict\(state\) everywhere$"
    for pair in ([state, plain], [plain, state]):
        with pytest.raises(ValueError, match=r"^model 1 differs from model 0 at 'bias(/value)?'.*" + remedy):
            nm.stack_models(pair)
    traced = nm.trace(lambda v, x: x @ v["kernel"][...] + v["bias"][...][None], state, jnp.ones((1, 2)))
    with pytest.raises(ValueError, match=r"^variables do not fit the graph at 'bias/value'.*" + remedy):
        traced.check(plain)
    with pytest.raises(ValueError, match=r"got no such leaf, traced with \(3,\)$"):
        traced.check({"other": plain["bias"]})


def test_labels_of_more_places_than_there_are_predictions_are_refused():
    with pytest.raises(ValueError, match=r"one per prediction, of shape \(4,\): got \(4, 8, 8\)"):
        nm.evaluate(lambda v, x: x[:, 0, 0], A, [(normal(0, 4, 8, 8, 3), np.zeros((4, 8, 8), np.int32))])
    with pytest.raises(ValueError, match=r"apply must return logits \(examples, classes\)"):
        nm.evaluate(lambda v, x: x[:, 0, 0, 0], A, [(normal(0, 4, 8, 8, 3), np.zeros(4, np.int32))])

"""The closed form of a fit's bytes, beside what XLA reports of the very step, and lean moments through `fit`."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from npmerge import (
    Average,
    Box,
    CrossEntropy,
    Free,
    Learned,
    PerChannel,
    PerParameter,
    PerTensor,
    Simplex,
    Stack,
    TaskArithmetic,
    fine_tuning,
    fit,
    stack_models,
    weight_space,
)
from npmerge.fitting import memory
from npmerge.fitting.memory import check_fits, predicted_bytes
from npmerge.fitting.updates import Constants, Run, State, update
from npmerge.memory import bytes_of
from npmerge.models import Mlp, ResNetCifar, abstract, example
from npmerge.sharding import AsGiven
from tests.npmerge.toys import apply, batch, variables

ADAM = optax.adam(1e-2)
LEAN = optax.adam(1e-2, mu_dtype=jnp.bfloat16)
FACTORED = optax.adafactor(1e-2)
MLP, RESNET = Mlp(64, (256, 512, 256), 10), ResNetCifar(1, 32, "B", classes=10, side=8)
GRANULARITIES = {"parameter": PerParameter(), "tensor": PerTensor(), "channel": PerChannel()}
MERGES = {name: Learned(Average(), granularity, Simplex()) for name, granularity in GRANULARITIES.items()}
MERGES["box"] = Learned(Average(), PerParameter(), Box())
MERGES["free"] = Learned(Average(), PerParameter(), Free())
MERGES["task vectors"] = Learned(TaskArithmetic(0.3), PerParameter(), Free())


def of_shapes(config, n, granularity, examples=2, dtype=jnp.float32):
    """Loss, theta, stack and batch as shapes: nothing is allocated, whatever the size. Fine-tuning for no granularity."""
    network = abstract(config)
    inputs = example(config, examples)
    data = (jax.ShapeDtypeStruct(inputs.shape, dtype), jax.ShapeDtypeStruct((examples,), np.int32))
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), network.variables)
    if granularity is None:
        return fine_tuning(network.apply, CrossEntropy()), one, None, data
    merge = MERGES[granularity]
    base = one if isinstance(merge.start, TaskArithmetic) else None
    stack = Stack(jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape), x.dtype), one), base)
    rows = 1 if n == 2 and isinstance(merge.constraint, Simplex) else n
    shapes = merge.granularity.shapes(stack.params)
    theta = {name: jax.ShapeDtypeStruct((rows, *shape), np.float32) for name, shape in shapes.items()}
    return weight_space(merge, network.apply, CrossEntropy()), theta, stack, data


def predicted(config, n, granularity, optimizer=ADAM, *, plan=True, compute=None, **options):
    loss, *given = of_shapes(config, n, granularity, **options)
    return predicted_bytes(loss, optimizer, *given, plan=plan, compute=compute)


def reported(loss, optimizer, theta, stack, data):
    """What XLA says that the step of `fit` holds: what goes in, what comes out anew, and what is needed meanwhile."""
    state = jax.eval_shape(lambda x: State(x, optimizer.init(x), jnp.array(True), x), theta)
    fixed = jax.tree.map(lambda _: None, theta)
    step = AsGiven().compiled(update, donated=(1,))
    run = Run(loss, optimizer, AsGiven())
    found = step.lower(run, state, Constants(fixed, stack), data, {}).compile().memory_analysis()
    sizes = found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes
    return sum(sizes) - found.alias_size_in_bytes


@pytest.mark.parametrize(
    ("config", "n", "granularity", "optimizer"),
    [
        (MLP, 2, "parameter", ADAM),
        (MLP, 5, "parameter", ADAM),
        (MLP, 5, "tensor", ADAM),
        (MLP, 3, "channel", ADAM),
        (MLP, 2, "parameter", LEAN),
        (MLP, 3, "parameter", FACTORED),
        (MLP, 3, "parameter", optax.chain(optax.clip_by_global_norm(1.0), ADAM)),
        (MLP, 2, "parameter", optax.sgd(0.1)),
        (MLP, 1, None, ADAM),
        (MLP, 8, "box", ADAM),
        (MLP, 5, "free", ADAM),
        (MLP, 8, "task vectors", ADAM),
        (RESNET, 3, "parameter", ADAM),
    ],
)
def test_the_closed_form_is_within_15_percent_of_what_xla_reports(config, n, granularity, optimizer):
    loss, *given = of_shapes(config, n, granularity)
    assert abs(predicted(config, n, granularity, optimizer).total / reported(loss, optimizer, *given) - 1) < 0.15


@pytest.mark.parametrize(("n", "granularity"), [(2, "parameter"), (3, "parameter"), (3, "tensor")])
def test_the_parts_are_the_formulas(n, granularity):
    found = predicted(MLP, n, granularity)
    parameters = sum(a * b + b for a, b in ((64, 256), (256, 512), (512, 256), (256, 10)))
    latents = {2: 1, 3: 3}[n] * (parameters if granularity == "parameter" else 8)
    assert found.models == 4 * n * parameters
    assert found.merged == 4 * parameters
    assert found.theta == 2 * 4 * latents  # one is the latest good
    assert found.moments == 8 * latents + 4  # Adam counts its steps
    assert found.gradient == 4 * max(latents, 256 * 512, parameters // 2)
    assert 4 * latents <= found.update < 1.3 * 4 * latents + 1000  # the gradient, and the largest tensor
    assert found.batch == 4 * 2 * 64 + 4 * 2
    held = found.models + found.theta + found.moments + found.batch
    assert found.total == held + max(found.update, found.merged + found.gradient + found.activations)


def test_two_models_cost_their_bytes_and_no_more_than_fine_tuning():
    merging, tuning = (
        predicted_bytes(given[0], ADAM, *given[1:]) for given in (of_shapes(MLP, 2, "parameter"), of_shapes(MLP, 1, None))
    )
    assert merging.total - tuning.total == pytest.approx(merging.models + merging.merged, rel=0.15)
    many = predicted_bytes(*(x := of_shapes(MLP, 8, "parameter"))[:1], ADAM, *x[1:])
    assert many.theta == 8 * merging.theta


@pytest.mark.parametrize(("optimizer", "copies"), [(ADAM, 1), (optax.chain(optax.clip_by_global_norm(1.0), ADAM), 2)])
def test_a_step_of_adam_holds_one_gradient_and_no_second_moments(optimizer, copies):
    """What XLA reports besides what is held throughout; a norm of the gradient has to be waited for."""
    loss, *given = of_shapes(MLP, 8, "parameter")
    found = predicted(MLP, 8, "parameter", optimizer)
    assert reported(loss, optimizer, *given) - found.models - found.theta - found.moments < (copies + 0.3) * found.theta / 2


@pytest.fixture
def optimised():
    """XLA as users have it."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def test_no_update_is_made_before_the_gradient_is_there(optimised):
    """What XLA holds for a while: the gradient, the merged network and its gradient, with nothing of moments beside them."""
    loss, *given = of_shapes(RESNET, 2, "parameter")
    found = predicted(RESNET, 2, "parameter")
    meanwhile = reported(loss, ADAM, *given) - found.models - found.theta - found.moments
    assert meanwhile < 1.05 * (found.merged + found.gradient + found.activations)


def test_activations_grow_with_the_batch_with_and_without_a_compiler():
    planned, counted = (predicted(MLP, 2, "parameter", examples=512, plan=plan) for plan in (True, False))
    assert 0.5 < planned.activations / counted.activations < 2
    assert counted._replace(activations=0, update=0) == planned._replace(activations=0, update=0)
    assert counted.update == counted.theta
    assert planned.activations > 10 * predicted(MLP, 2, "parameter").activations


def test_low_precision_halves_models_and_moments():
    a, b = (predicted(MLP, 2, "parameter", dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    assert (b.models, b.merged, b.theta, b.moments) == (a.models // 2, a.merged // 2, a.theta, a.moments)
    c = predicted(MLP, 2, "parameter", compute=jnp.bfloat16)
    assert (c.models, c.merged, c.theta, c.moments) == (a.models, b.merged, a.theta, a.moments)
    lean, factored = (predicted(MLP, 2, "parameter", optimizer) for optimizer in (LEAN, FACTORED))
    assert lean.moments == pytest.approx(0.75 * a.moments, rel=1e-3)
    assert factored.moments < 0.1 * a.moments


def test_real_arrays_are_predicted_as_their_shapes():
    merge, stack = MERGES["parameter"], stack_models([variables(0), variables(1)])
    loss, theta = weight_space(merge, apply, CrossEntropy()), merge.init(stack)
    found = predicted_bytes(loss, ADAM, theta, stack, batch(0))
    assert (found.models, found.theta) == (bytes_of(stack), 2 * bytes_of(theta))
    with pytest.raises(
        ValueError, match=r"bytes are predicted for weight_space\(\.\.\.\) or fine_tuning\(\.\.\.\): got function"
    ):
        predicted_bytes(lambda *_: 0.0, ADAM, theta, stack, batch(0))


def test_what_does_not_fit_is_refused_with_three_remedies():
    found = predicted(MLP, 2, "parameter")
    check_fits(found, found.total)
    with pytest.raises(ValueError, match=r"a step needs 9.\d\d MB and the device has 5 MB") as error:
        check_fits(found, 5_000_000)
    message = str(error.value)
    state = found.models + found.theta + found.moments + max(found.merged + found.gradient, found.update)
    for remedy in (
        f'1. shard the features (shard="features") over several devices, which divides {state / 1e6:.3g} MB by',
        "2. models in bfloat16",
        "mu_dtype=jnp.bfloat16",
        "optax.adafactor",
        f"models are {found.models / 1e6:.3g} MB, moments {found.moments / 1e6:.3g} MB",
        "3. a coarser",
        f"theta is {found.theta / 1e6:.3g} MB",
    ):
        assert remedy in message
    with pytest.raises(ValueError, match="device_bytes must be an integer of 1 or more, got 0"):
        check_fits(found, 0)


@functools.cache
def learnable():
    """Two models of a matrix large enough to be factored, and labels that one of them solves."""
    rng = np.random.default_rng(0)
    models = [{"w": jnp.asarray(rng.standard_normal((128, 130)).astype(np.float32), np.float32)} for _ in range(2)]
    inputs = jnp.asarray(rng.standard_normal((16, 128)).astype(np.float32), np.float32)
    labels = (inputs @ models[0]["w"]).argmax(1).astype(jnp.int32)
    stack = stack_models(models)
    loss = weight_space(MERGES["parameter"], lambda v, x: x @ v["w"], CrossEntropy())
    return MERGES["parameter"].init(stack), loss, stack, [(inputs, labels)]


LEANER = {
    "bfloat16": (optax.adam(0.3, mu_dtype=jnp.bfloat16), 0.75),
    "adafactor": (optax.adafactor(0.3, multiply_by_parameter_scale=False), 0.02),
    "factored": (optax.chain(optax.scale_by_factored_rms(), optax.scale(-0.3)), 0.02),
}


@pytest.mark.parametrize(("optimizer", "share"), LEANER.values(), ids=LEANER)
def test_lean_moments_learn_latents(optimizer, share):
    """The same loss as with Adam to a tenth, with moments of `share` of Adam's bytes."""
    theta, loss, stack, batches = learnable()
    found, full = (fit(theta, loss, stack, batches, o, steps=40) for o in (optimizer, optax.adam(0.3)))
    assert found.status == "finished"
    chex.assert_trees_all_equal_dtypes(found.theta, theta)
    assert found.history.loss[-1] < 0.1 * found.history.loss[0]
    assert full.history.loss[-1] < 0.1 * full.history.loss[0]
    assert bytes_of(jax.eval_shape(optimizer.init, theta)) <= 1.01 * share * bytes_of(jax.eval_shape(ADAM.init, theta))


def test_a_fit_that_a_device_cannot_hold_is_refused_before_its_first_step(monkeypatch):
    merge, stack = MERGES["parameter"], stack_models([variables(0), variables(1)])
    loss = weight_space(merge, apply, CrossEntropy())
    given = merge.init(stack), loss, stack, [batch(0)], ADAM
    needed = predicted_bytes(loss, ADAM, given[0], stack, batch(0), plan=False)
    monkeypatch.setattr(memory, "device_limit", lambda layout: needed.total)
    fit(*given, steps=1)
    monkeypatch.setattr(memory, "device_limit", lambda layout: needed.total - 1)
    with pytest.raises(ValueError, match=r"1\. shard the features"):
        fit(*given, steps=1)
    fit(*given, steps=1, accumulate=2)  # half of the activations at once
    fit(*given, steps=1, devices=2, shard="features")
    with pytest.raises(ValueError, match=r"1\. shard the features"):
        monkeypatch.setattr(memory, "device_limit", lambda layout: 100)
        fit(*given, steps=1, devices=2, parallel="pmap")
    assert needed.on(2, features=True).theta == needed.theta // 2 and needed.on(2, features=False).theta == needed.theta

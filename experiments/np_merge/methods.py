"""The rows: what each method makes of a group of networks."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

import npmerge as nm
from alignment.graph import PyTree
from experiments.data import Examples
from experiments.learning import Budget, adam, lowest, search
from experiments.np_merge.networks import Networks
from experiments.np_merge.settings import (
    AVERAGE,
    BEST,
    CHANNELS,
    ENSEMBLE,
    FISHER,
    FISHER_CONTROL,
    FROM_FISHER,
    LONG_CONTROL,
    LONG_PAIRS,
    ONE,
    PAIRS,
    PARAMETERS,
    PARENTS,
    SCALAR,
    TENSORS,
    Job,
)
from experiments.problem import Problem

GRANULARITIES = {
    SCALAR: nm.PerModel(),
    TENSORS: nm.PerTensor(),
    CHANNELS: nm.PerChannel(),
    PARAMETERS: nm.PerParameter(),
    FROM_FISHER: nm.PerParameter(),
}


class Found(NamedTuple):
    """A network that was learned: at which rate (empty if it is the start), by how many steps, how many numbers at once."""

    network: PyTree
    rate: float | str
    steps: int
    learned: int


class Case(NamedTuple):
    """What is learned.

    Attributes:
        theta: before the first step.
        loss: of it.
        stack: what is merged; None for weights.
        network: what makes the variables of a network of theta.
    """

    theta: PyTree
    loss: Any
    stack: nm.Stack | None
    network: Callable[[PyTree], PyTree]


def measure(problem: Problem, networks: Networks | None, job: Job) -> dict[str, Any]:
    """The columns of a row that were measured. Only what learns from scratch needs no networks."""
    if networks is None or job.method not in _CLOSED:
        found = learned(problem, networks, job)
        metrics = problem.tested(problem.renewed(found.network))
        return _row(metrics, rate=found.rate, steps=found.steps, learned=found.learned, chosen=_chosen(networks, job))
    return _row(_CLOSED[job.method](problem, networks, job), chosen=_chosen(networks, job))


def learned(problem: Problem, networks: Networks | None, job: Job) -> Found:
    """What a learned merge or a control comes to at the best of its rates."""
    if networks is not None and job.method in (PAIRS, LONG_PAIRS):
        return in_pairs(problem, networks, job)
    return tuned(problem, case_of(problem, networks, job), job)


def case_of(problem: Problem, networks: Networks | None, job: Job) -> Case:
    """Where a method starts, and what it learns."""
    if networks is None:
        return _weights(problem, problem.initial(1000 * problem.seed))
    if job.method == ONE:
        return _weights(problem, networks.models[0])
    stack = nm.stack_models(networks.aligned(job.start)[0])
    by_fisher = functools.partial(networks.fisher, job.start, job.labelled)
    if job.method in GRANULARITIES:
        merge = nm.Learned(nm.Average(), GRANULARITIES[job.method], nm.Simplex())
        start = nm.Learned(nm.Fisher(), merge.granularity, merge.constraint) if job.method == FROM_FISHER else merge
        theta = start.init(stack, stats=by_fisher() if job.method == FROM_FISHER else None)
        loss = nm.weight_space(merge, problem.outputs, problem.objective)
        return Case(theta, loss, stack, lambda theta: _merged(merge, theta, stack))
    if job.method == FISHER_CONTROL:
        return _weights(problem, nm.Fisher()(stack, stats=by_fisher()))
    return _weights(problem, nm.Average()(stack))


def tuned(problem: Problem, case: Case, job: Job) -> Found:
    """Learn at each rate from the same batches, and keep what is best on validation data."""
    learning = problem.task.learning
    turns = job.models - 1 if job.method == LONG_CONTROL else 1  # of pairs, each of which looks as often at validation data
    steps = learning.steps * turns
    found = Budget(steps, learning.judgements * turns, learning.further).tuned(
        case.theta,
        case.loss,
        case.stack,
        batches=functools.partial(batches, problem, problem.labelled(job.labelled)),
        held_out=problem.validation,
        rates=learning.rates(job.method),
    )
    rate = "" if _equal(found.theta, case.theta) else found.rate
    return Found(case.network(found.theta), rate, steps, nm.parameters(case.theta))


def in_pairs(problem: Problem, networks: Networks, job: Job) -> Found:
    """One network after another; the rate is that of the lowest loss of the last pair."""
    learning, models = problem.task.learning, networks.aligned(job.start)[0]
    steps = learning.steps if job.method == LONG_PAIRS else max(1, learning.steps // (len(models) - 1))
    learn = functools.partial(nm.successive, models, problem.outputs, problem.objective, steps=steps)
    every, examples = max(1, steps // learning.judgements), problem.labelled(job.labelled)

    def learned_at(rate: float) -> Any:
        return learn(batches(problem, examples), adam(rate, steps), held_out=problem.validation, every=every)

    rates, further = learning.rates(job.method), learning.further
    found = search(rates, learned_at, lambda f: lowest(f.turns[-1].history.held_out_loss), further)
    size = nm.parameters(found.best.turns[-1].theta)
    return Found(found.best.network, found.rate, steps * (len(models) - 1), size)


def batches(problem: Problem, examples: Examples) -> Iterator[tuple]:
    """The batches that everything learns from, from the first one on."""
    return problem.batches(examples, problem.task.learning.batch, seed=problem.seed)


@functools.partial(jax.jit, static_argnums=0)
def _merged(merge: nm.Learned, theta: PyTree, stack: nm.Stack) -> PyTree:
    return merge.apply(theta, stack)


def _equal(a: PyTree, b: PyTree) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def _weights(problem: Problem, start: PyTree) -> Case:
    return Case(start, problem.loss, None, lambda theta: theta)


# ------------------------------------------------------------------------------------------------------ what does not learn


def _parents(problem: Problem, networks: Networks, job: Job) -> nm.Metrics:
    found = [problem.tested(model) for model in networks.models]
    return nm.Metrics(float(np.mean([f.accuracy for f in found])), float(np.mean([f.loss for f in found])), 0)


def _best(problem: Problem, networks: Networks, job: Job) -> nm.Metrics:
    """The network of the lowest loss on validation data."""
    return problem.tested(min(networks.models, key=lambda model: problem.judged(model).loss))


def _ensemble(problem: Problem, networks: Networks, job: Job) -> nm.Metrics:
    return problem.tested(networks.models, nm.LogitEnsemble(problem.network.apply))


def _average(problem: Problem, networks: Networks, job: Job) -> nm.Metrics:
    return problem.tested(problem.renewed(nm.Average()(nm.stack_models(networks.aligned(job.start)[0]))))


def _by_fisher(problem: Problem, networks: Networks, job: Job) -> nm.Metrics:
    stack = nm.stack_models(networks.aligned(job.start)[0])
    return problem.tested(problem.renewed(nm.Fisher()(stack, stats=networks.fisher(job.start, job.labelled))))


_CLOSED = {PARENTS: _parents, BEST: _best, ENSEMBLE: _ensemble, AVERAGE: _average, FISHER: _by_fisher}


def _chosen(networks: Networks | None, job: Job) -> str:
    return networks.aligned(job.start)[1] if networks is not None and job.start else ""


def _row(metrics: nm.Metrics, **columns: Any) -> dict[str, Any]:
    found = {"accuracy": metrics.accuracy, "loss": metrics.loss}
    return found | {"rate": "", "steps": 0, "learned": 0, "chosen": ""} | columns

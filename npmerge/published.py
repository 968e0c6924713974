"""Published learned merges: values of `Learned`, with what they were learned by."""

from npmerge.constraints import Clip, Free, Simplex
from npmerge.granularity import PerInput, PerModel, PerParameter, PerTensor
from npmerge.learned import Learned
from npmerge.methods import Average, TaskArithmetic, Ties


def np_merge() -> Learned:
    """NP Merge: for each parameter a point between the models, from their average (Orozco Camacho et al. 2024).

    theta = sum_m alpha_m * theta_m with alpha a sigmoid (a softmax for more than two models; the paper merges in pairs), on
    models that were aligned first. Objective: the task's loss with labels, such as `CrossEntropy()`.

    Example:
        >>> merge = nm.np_merge()
        >>> stack = nm.stack_models([{"w": jnp.array([1.0, 3.0])}, {"w": jnp.array([3.0, 5.0])}])
        >>> print(merge(stack)["w"], merge.apply({"w": jnp.array([[9.0, -9.0]])}, stack)["w"].round(2))
        [2. 4.] [1. 5.]
    """
    return Learned(Average(), PerParameter(), Simplex())


def ada_merging(scale: float = 0.3, *, layer_wise: bool = True, plus_plus: bool = False) -> Learned:
    """AdaMerging: base + sum_m lambda_m * (params_m - base), lambda learned without labels (Yang et al. 2024).

    Objective: `Entropy()` on batches of all tasks; published with 16 inputs of each, Adam at 1e-3 (betas 0.9 and 0.999, no
    weight decay) and 500 steps, on the inputs that are tested on.

    Where implementations disagree: the published program clips lambda to [0, 1], here too; others leave it free
    (`dataclasses.replace(merge, constraint=Free())`). A layer is one tensor.

    Args:
        scale: lambda to start from.
        layer_wise: one lambda per model and tensor, else one per model (task-wise).
        plus_plus: AdaMerging++: task vectors are trimmed to a fifth of the model and signs elected first, as TIES does.

    Example:
        >>> base, models = {"w": jnp.zeros(2)}, [{"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 2.0])}]
        >>> merge, stack = nm.ada_merging(0.3), nm.stack_models(models, base)
        >>> theta = merge.init(stack)
        >>> print(theta["w"], merge.apply(theta, stack)["w"])  # lambda of each model, and task arithmetic by them
        [0.3 0.3] [0.3 0.6]
    """
    masks = Ties(0.2, merge="sum") if plus_plus else None
    return Learned(TaskArithmetic(scale), PerTensor() if layer_wise else PerModel(), Clip(), masks)


def dam() -> Learned:
    """Differentiable Adaptive Merging: sum_m W_m diag(c_m), c one number per input channel (Gauthier-Caron et al. 2024).

    They start at 1 / N; W is (out, in) as the paper writes it, so columns are input channels. The published objective is a
    Kullback-Leibler divergence of temperature 2 from each model on its own data, with small penalties of the coefficients'
    cosines (0.01), magnitudes (1e-6) and norms (1e-5), by AdamW at 1e-2: `Joint(Distillation(2.0, teacher="own"))`, with
    `weighted_sum` for penalties.

    Where implementations disagree: the published program can pass coefficients through a tanh, here they are free; it has one
    coefficient for a whole bias and one for each column of an embedding, here they are one per entry and one per row.

    Example:
        >>> stack = nm.stack_models([{"w": jnp.ones((2, 3))}, {"w": 3 * jnp.ones((2, 3))}])
        >>> merge = nm.dam()
        >>> theta = merge.init(stack)
        >>> print(theta["w"].shape, theta["w"].ravel())  # for two models and two inputs
        (2, 2, 1) [0.5 0.5 0.5 0.5]
        >>> print(merge.apply({"w": theta["w"].at[0, 0].set(1.0)}, stack)["w"])
        [[2.5 2.5 2.5]
         [2.  2.  2. ]]
    """
    return Learned(Average(), PerInput(), Free())

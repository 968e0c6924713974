"""What the experiment on a MiniLM fine-tuned twice does: how much work, its recipe, and the names of its rows."""

from dataclasses import dataclass

from experiments.run import Preset
from experiments.sentences import Sizes

SIZES = Sizes(length=24, train=6000, learning=400, selection=128, test=640)


@dataclass(frozen=True)
class Settings:
    """How much work a run does. Grids of rates are of one length: learned merges and the control are tuned alike."""

    sizes: Sizes = SIZES
    probe: int = 1000  # training sentences of each task that its head is fitted to
    training_rate: float = 1e-4
    training_steps: int = 200
    steps: int = 40
    batch: int = 32
    learned_rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    control_rates: tuple[float, ...] = (1e-5, 5e-5, 2e-4)
    scales: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)


PRESETS = {
    Preset.test: Settings(
        sizes=Sizes(length=8, train=64, learning=24, selection=24, test=24), probe=48, training_steps=20,
        training_rate=3e-3, steps=10, batch=8, learned_rates=(1.0,), control_rates=(1e-3,), scales=(0.5, 1.0),
    ),
    Preset.cpu: Settings(),
    Preset.paper: Settings(
        sizes=Sizes(length=128, train=8000, learning=800, selection=384, test=2000),
        training_steps=1000, steps=500,
    ),
}  # fmt: skip

BASE, OWN = "base, with heads fitted to it", "each fine-tune on its own task"
GENRE, LANGUAGE = "fine-tuned on genre", "fine-tuned on language"
AVERAGE, ARITHMETIC = "average", "task arithmetic"
PARAMETERS, TENSORS = "NP Merge, per parameter", "NP Merge, per tensor"
CONTROL = "control: average fine-tuned"
METHODS = (BASE, GENRE, LANGUAGE, OWN, AVERAGE, ARITHMETIC, PARAMETERS, TENSORS, CONTROL)
GRANULARITIES = {PARAMETERS: "per_parameter", TENSORS: "per_tensor"}

RECIPE = """\
merge_method: linear
models:
  - {{model: genre, parameters: {{weight: 1}}}}
  - {{model: language, parameters: {{weight: 1}}}}
learn:
  data:
    - {{path: genre_learning.npz, model: genre}}
    - {{path: language_learning.npz, model: language}}
  held_out: [genre_selection.npz, language_selection.npz]
  objective: experiments.minilm_heads:cross_entropy
  granularity: {granularity}
  optimizer: {{name: adam, arguments: {{learning_rate: {rate:g}}}}}
  steps: {steps}
  every: {every}
  batch_size: {batch}
  seed: {seed}
"""


def recipe(settings: Settings, method: str, rate: float, seed: int) -> str:
    """The recipe of a learned merge."""
    numbers = {"steps": settings.steps, "every": every(settings.steps), "batch": settings.batch // 2, "seed": seed}
    return RECIPE.format(granularity=GRANULARITIES[method], rate=rate, **numbers)


def every(steps: int) -> int:
    """Five judgements on validation data, however long the run."""
    return max(1, steps // 5)

"""What the experiment on many models does: how much work, and the names of its rows."""

from dataclasses import dataclass

from experiments.run import Preset


@dataclass(frozen=True)
class Settings:
    """How much work a run does. Both grids of rates are of one length: learned merges and controls are tuned alike."""

    counts: tuple[int, ...] = (2, 4, 8, 16, 32)
    hidden: tuple[int, ...] = (64,)
    part: int = 100  # training images of each network
    skew: float = 0.5  # concentration of the Dirichlet distribution from which each network's classes are drawn
    training_rate: float = 1e-2
    training_steps: int = 100
    labelled: int = 50  # images that merges and controls learn from; no network saw them
    steps: int = 100
    batch: int = 50
    learned_rates: tuple[float, ...] = (0.01, 0.1, 1.0)
    control_rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2)


PRESETS = {
    Preset.test: Settings(
        counts=(2, 3), hidden=(8,), part=40, training_steps=5, labelled=40, steps=4, batch=20, learned_rates=(0.1,),
        control_rates=(1e-3,),
    ),
    Preset.cpu: Settings(),
    Preset.paper: Settings(hidden=(256, 256), steps=500, training_steps=300),
}  # fmt: skip

PARENTS, ENSEMBLE, AVERAGE = "networks, on average", "ensemble of logits", "average"
JOINT, TENSORS = "joint, per parameter", "joint, per tensor"
SHORT, PAIRS, REVERSED = "pairs, as many steps in all", "pairs, as many steps each", "pairs, in reversed order"
CONTROL, LONG = "control: average fine-tuned", "control: the same, as many steps as pairs"
START = "control: common start fine-tuned"
METHODS = (PARENTS, AVERAGE, JOINT, TENSORS, SHORT, CONTROL, START, PAIRS, REVERSED, LONG, ENSEMBLE)
CONTROLS = (CONTROL, START, LONG)

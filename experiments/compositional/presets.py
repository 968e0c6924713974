"""How much work there is: the smallest run, one for two cores, and one of the size of the paper's."""

import dataclasses

from experiments.compositional.settings import CONTROLS, NP_MERGE, Learning, Settings, Sizes, Task
from experiments.compositional.settings import PAPER as PUBLISHED
from experiments.run import Preset
from experiments.together import Regime

_TINY = Task(
    "digits", "images", "digits", "upright", width=8, layers=1, sizes=Sizes(cell=64, base=256), base=Regime(3e-3, 60, 16, 1),
    fine_tuning=Regime(1e-2, 40, 16, 1), methods=("Average", "TaskArithmetic", "Fisher", "RegMean", NP_MERGE,
    CONTROLS[NP_MERGE]), curves=("TaskArithmetic",), orders=2, values=2,
    learning=Learning(4, 8, 2, (0.03, 0.1), (0.003, 0.01), (1e-3, 3e-3), 1),
)  # fmt: skip
_TINIER = dataclasses.replace(
    _TINY, base=Regime(3e-3, 10, 8, 1), fine_tuning=Regime(1e-3, 5, 8, 1), methods=("Average",), curves=()
)

TEST = Settings((
    _TINY,
    dataclasses.replace(_TINIER, name="made text", setting="text", data="made", base_domain="en", vocabulary=400, length=24),
    dataclasses.replace(
        _TINIER, name="made digits", setting="generation", side=8, rank=2, classifier=Regime(3e-3, 10, 8, 1), samples=2,
        sampling=3,
    ),
))  # fmt: skip

_FEW = Sizes(cell=12_000, validation_cell=300, test=600, base=120_000)
_READING, _TOLD = Regime(2e-3, 4000, 64, 8), Regime(1e-3, 400, 32)
CPU = Settings((
    Task("PACS", "images", "pacs", "photo", patch=8, base=Regime(2e-3, 3000, 64, 6), fine_tuning=Regime(3e-4, 150, 32)),
    Task("emoji", "images", "emoji", "noto", patch=8, base=Regime(2e-3, 3000, 64, 6), fine_tuning=Regime(3e-4, 150, 32)),
    Task("XNLI", "text", "xnli", "en", 64, sizes=_FEW, base=_READING, fine_tuning=_TOLD, vocabulary=4000),
    Task("manual pages", "text", "manuals", "en", 64, sizes=_FEW, base=_READING, fine_tuning=_TOLD, vocabulary=4000),
    Task("MNIST made", "generation", "mnist", "upright", base=Regime(2e-3, 10_000, 64), fine_tuning=Regime(2e-3, 250, 32),
         classifier=Regime(1e-3, 20_000, 64, 8)),
))  # fmt: skip

_MANY = Sizes(cell=5000, validation_cell=5000, test=5000, base=400_000)
_LARGE = (
    Task("PACS", "images", "pacs", "photo", 384, 6, base=Regime(1e-3, 20_000, 256, 20, 8), fine_tuning=Regime(
         1e-4, 1000, 128, 20, 8), orders=10),
    Task("emoji", "images", "emoji", "noto", 384, 6, base=Regime(1e-3, 20_000, 256, 20, 8), fine_tuning=Regime(
         1e-4, 1000, 128, 20, 8), orders=10),
    Task("XNLI", "text", "xnli", "en", 384, 6, sizes=_MANY, base=Regime(1e-3, 30_000, 256, 20, 8), fine_tuning=Regime(
         1e-4, 5000, 128, 50, 8), orders=6, vocabulary=8000, length=96),
    Task("manual pages", "text", "manuals", "en", 384, 6, sizes=_MANY, base=Regime(1e-3, 30_000, 256, 20, 8),
         fine_tuning=Regime(1e-4, 5000, 128, 50, 8), orders=6, vocabulary=8000, length=96),
    Task("MNIST made", "generation", "mnist", "upright", 384, 6, base=Regime(1e-3, 50_000, 256, 20, 8), fine_tuning=Regime(
         5e-4, 2000, 128, 20, 8), classifier=Regime(1e-3, 10_000, 256), orders=10, side=32, rank=8, samples=100, sampling=50),
)  # fmt: skip
PAPER = Settings(tuple(
    dataclasses.replace(task, curves=PUBLISHED, numbers=None, learning=Learning(500, 16, 5)) for task in _LARGE
))  # fmt: skip

PRESETS = {Preset.test: TEST, Preset.cpu: CPU, Preset.paper: PAPER}

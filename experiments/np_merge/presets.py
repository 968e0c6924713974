"""How much work each preset is."""

from experiments.np_merge.settings import (
    ACTIVATIONS,
    AVERAGE,
    BEST,
    CHANNELS,
    CONTROL,
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
    SCRATCH,
    STARTS,
    TENSORS,
    Block,
    Learning,
    Settings,
    Task,
    Training,
)
from experiments.run import Preset
from npmerge.models import ResNetCifar, Vgg

REFERENCES = (PARENTS, BEST, AVERAGE)
BY_LABELS = (
    *REFERENCES,
    FISHER,
    SCALAR,
    TENSORS,
    CHANNELS,
    PARAMETERS,
    FROM_FISHER,
    CONTROL,
    FISHER_CONTROL,
    ONE,
    SCRATCH,
    ENSEMBLE,
)
BY_START = (AVERAGE, PARAMETERS, CONTROL)
BY_MODELS = (*REFERENCES, TENSORS, PARAMETERS, PAIRS, CONTROL, LONG_PAIRS, LONG_CONTROL, ENSEMBLE)
SHORT = (*REFERENCES, PARAMETERS, CONTROL, ENSEMBLE)

_TRY = Learning(steps=4, batch=32, judgements=2, merge_rates=(0.3,), control_rates=(1e-3,), scratch_rates=(1e-2,))
_TRIED = Training(steps=20, batch=32)

PRESETS = {
    Preset.test: Settings(
        tasks=(
            Task("digits-vgg", "digits", "VGG", Vgg(((4,), (8,)), ()), _TRIED, _TRY, measured=64, fisher=16, judged=64, tested=64),
            Task("digits-resnet", "digits", "ResNet-8", ResNetCifar(1, 2, "B"), _TRIED, _TRY, measured=64, judged=64, tested=64),
        ),
        blocks=(
            Block("Labels", "digits-vgg", BY_LABELS, "labelled", labelled=(0.02, 1.0)),
            Block("Starts", "digits-vgg", BY_START, "start", starts=STARTS, labelled=(0.02,)),
            Block("Models", "digits-vgg", BY_MODELS, "models", splits=("same",), models=(2, 3), labelled=(0.02,)),
            Block("ResNet", "digits-resnet", SHORT, "split", splits=("same", "disjoint"), starts=(ACTIVATIONS,), labelled=(0.02,)),
        ),
        gammas=(0.1,),
    ),
}  # fmt: skip

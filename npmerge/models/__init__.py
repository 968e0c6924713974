"""Architectures, one a file. To add one: write the file, add its configuration to MODELS; the contract tests cover it."""

from npmerge.models.bert import Bert
from npmerge.models.build import Config, Network, abstract, build, example
from npmerge.models.gpt2 import Gpt2
from npmerge.models.llama import Llama
from npmerge.models.mlp import Mlp
from npmerge.models.resnet import ResNet
from npmerge.models.resnet_cifar import ResNetCifar
from npmerge.models.vgg import Vgg
from npmerge.models.vit import Vit
from npmerge.models.with_widths import WithWidths

MODELS: tuple[type[Config], ...] = (Mlp, Vgg, ResNetCifar, ResNet, Vit, Bert, Gpt2, Llama, WithWidths)

__all__ = [
    "MODELS",
    "Bert",
    "Config",
    "Gpt2",
    "Llama",
    "Mlp",
    "Network",
    "ResNet",
    "ResNetCifar",
    "Vgg",
    "Vit",
    "WithWidths",
    "abstract",
    "build",
    "example",
]

"""Architectures, one a file. To add one: write the file, add its configuration to MODELS; the contract tests cover it."""

from npmerge.models.build import Config, Network, build, example
from npmerge.models.mlp import Mlp
from npmerge.models.resnet_cifar import ResNetCifar
from npmerge.models.vgg import Vgg

MODELS: tuple[type[Config], ...] = (Mlp, Vgg, ResNetCifar)

__all__ = ["MODELS", "Config", "Mlp", "Network", "ResNetCifar", "Vgg", "build", "example"]

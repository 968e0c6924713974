"""The names and layouts that users' files have for the tensors of the architectures, one table a file.

To add one: write the file and add its ARCHITECTURE to NAMED; `npmerge/checkpoint/names.py` reads and writes by it.
"""

from npmerge.models.names import bert, gpt2, llama, resnet, resnet_cifar, vgg, vit
from npmerge.models.names.table import Architecture, Name, Names

NAMED: tuple[Architecture, ...] = tuple(x.ARCHITECTURE for x in (vgg, resnet_cifar, resnet, vit, bert, gpt2, llama))

__all__ = ["NAMED", "Architecture", "Name", "Names"]

"""Modules of PyTorch as people write and download them, tiny, with random numbers everywhere."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("torchax", reason="needs PyTorch: pip install npmerge[torch]", exc_type=ImportError)

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["MODULES", "Case", "case", "fill", "functional", "load_file", "nn", "save_file", "torch"]


class Case(NamedTuple):
    """A module in evaluation mode, its inputs, and which of its outputs is meant."""

    module: nn.Module
    inputs: Tensor
    output: str | None = None

    def __call__(self) -> np.ndarray:
        """What PyTorch computes."""
        with torch.no_grad():
            found = self.module(self.inputs)
        return (found if self.output is None else found[self.output]).numpy()


class Attention(nn.Module):
    """One kernel for queries, keys and values, as timm has it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """As timm writes it: patches by a convolution, a class token, positions, pre-norm blocks."""

    def __init__(self, width: int = 12, heads: int = 3, depth: int = 2):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 5, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class Convolutions(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(2, outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, padding=1), nn.GroupNorm(2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.norm1(self.conv1(x)))
        return functional.silu(self.norm2(self.conv2(x)))


class UNet(nn.Module):
    """Two levels; the way up once by a transposed convolution, once by repeated pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = Convolutions(3, 4), Convolutions(4, 8), Convolutions(8, 12)
        self.widen, self.up2, self.up1 = nn.ConvTranspose2d(12, 8, 2, 2), Convolutions(16, 8), Convolutions(12, 4)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(functional.max_pool2d(a, 2))
        y = self.widen(self.middle(functional.max_pool2d(b, 2)))
        y = functional.interpolate(self.up2(torch.cat([y, b], 1)), scale_factor=2.0, mode="nearest")
        return self.out(self.up1(torch.cat([y, a], 1)))


def resnet50() -> Case:
    """The blocks of torchvision's, without the widening by four: what takes time is the matching of 2048 channels."""
    resnet = pytest.importorskip("torchvision.models.resnet", reason="needs torchvision")
    block = type("Bottleneck", (resnet.Bottleneck,), {"expansion": 1})
    return Case(resnet.ResNet(block, [3, 4, 6, 3], num_classes=5, width_per_group=4), torch.randn(4, 3, 32, 32))


def of_transformers(name: str, output: str = "logits", **sizes: Any) -> Case:
    """A model of transformers from its configuration."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    kind = getattr(transformers, name)
    return Case(kind(kind.config_class(vocab_size=19, **sizes)), torch.randint(0, 19, (3, 6)), output)


ENDS = {"bos_token_id": 0, "eos_token_id": 0}
SIZES = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 20, "max_position_embeddings": 16}
MODULES: dict[str, Callable[[], Case]] = {
    "ResNet-50": resnet50,
    "ViT": lambda: Case(VisionTransformer(), torch.randn(3, 3, 8, 8)),
    "U-Net": lambda: Case(UNet(), torch.randn(3, 3, 8, 8)),
    "GPT-2": lambda: of_transformers("GPT2LMHeadModel", n_positions=8, n_embd=12, n_layer=2, n_head=3, **ENDS),
    "Llama": lambda: of_transformers("LlamaForCausalLM", num_attention_heads=6, num_key_value_heads=3, **SIZES, **ENDS),
    "BERT": lambda: of_transformers("BertForSequenceClassification", num_attention_heads=3, num_labels=4, **SIZES),
}


def case(name: str) -> Case:
    """One of them, filled."""
    torch.manual_seed(0)
    found = MODULES[name]()
    fill(found.module)
    return found


def fill(module: nn.Module) -> None:
    """Numbers that matter: kernels by fan-in, scales and variances around one, biases and means around zero."""
    module.eval()
    with torch.no_grad():
        for name, x in module.state_dict().items():
            if not x.dtype.is_floating_point:
                continue
            if x.ndim > 1:
                x.normal_().div_((x[0].numel() if "embed" not in name else 1) ** 0.5)
            elif name.endswith("bias") or "mean" in name:
                x.normal_(0, 0.3)
            else:
                x.uniform_(0.5, 1.5)

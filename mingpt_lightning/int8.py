"""Weights in eight bits, for generation on a CPU: reading the weights is what a token costs.

Each row of a matrix has its own scale, so that its largest weight is 127 (Dettmers et al. 2022, "LLM.int8()", section
2.1, for the weights alone); activations stay bfloat16.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mingpt_lightning.gpt import GPT

FEW = 8
"""Up to so many rows, the kernel for eight-bit weights is faster than turning them into bfloat16 first."""


class Int8Linear(nn.Module):
    """A linear layer whose weight takes a byte for each number. (..., in) -> (..., out), bfloat16."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.bfloat16())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) > FEW:
            return F.linear(x, self.weight.bfloat16() * self.scale[:, None], self.bias)
        y = torch._weight_int8pack_mm(rows, self.weight, self.scale).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def quantize(gpt: GPT) -> GPT:
    """Turn all matrices of a GPT into eight-bit ones, in place; what is left becomes bfloat16. It can't be trained."""
    for module in list(gpt.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
    return gpt.bfloat16().requires_grad_(False)

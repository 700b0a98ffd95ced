"""Optimizes a GPT for inference: the dtype of its weights, and matrices packed in oneDNN's layout on a CPU.

Generating one token of a single row takes as long as reading all weights. PyTorch's linear layers keep a matrix row by
row and reach less than half of a CPU's memory bandwidth; oneDNN, which is part of PyTorch, has a blocked layout that it
reads one and a half to two times as fast, also for several rows.
"""

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from mingpt_lightning.device import NARROW, fast_dtype
from mingpt_lightning.errors import UserError, nearest
from mingpt_lightning.gpt import GPT

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

ROWS = 16
"""The number of rows that oneDNN packs a matrix for; measured, the layout for 16 is as fast for 1 and for 512."""


class PackedLinear(nn.Module):
    """A linear layer in oneDNN's packed layout, for the CPU: (..., in) -> (..., out). It has no gradient.

    gelu_tanh: apply GELU in its tanh approximation to the result, fused into the same kernel.
    """

    bias: Tensor | None

    def __init__(self, linear: nn.Linear, gelu_tanh: bool = False):
        super().__init__()
        self.after: tuple[str, list[Any], str] = ("gelu", [], "tanh") if gelu_tanh else ("none", [], "")
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *self.after)


def optimize_for_inference(gpt: GPT, dtype: Literal["auto", "float32", "bfloat16"] = "auto") -> GPT:
    """Make a GPT generate faster, in place, on its device; it can't be trained or saved any more.

    dtype: of the weights; "auto" is `fast_dtype`. Raises UserError for another one.
    """
    if dtype not in ("auto", *DTYPES):
        raise UserError(f"dtype={dtype} is not possible", "dtype", nearest(str(dtype), ["auto", *DTYPES]))
    device, n_embd = gpt.token_embedding.weight.device, gpt.config["n_embd"]
    gpt.to(fast_dtype(device, n_embd) if dtype == "auto" else DTYPES[dtype]).requires_grad_(False).eval()
    if device.type == "cpu" and n_embd >= NARROW and hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        gelu_tanh = gpt.config["activation"] == "gelu_tanh"
        for block in cast(Any, gpt.blocks):
            block.attn.qkv, block.attn.proj = PackedLinear(block.attn.qkv), PackedLinear(block.attn.proj)
            block.mlp.fc, block.mlp.proj = PackedLinear(block.mlp.fc, gelu_tanh), PackedLinear(block.mlp.proj)
            if gelu_tanh:
                block.mlp.activation = nn.Identity()
        cast(Any, gpt).head = PackedLinear(gpt.head)
    return gpt


prepare = optimize_for_inference
"""The former name, which the next version will not have."""

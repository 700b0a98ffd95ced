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
from mingpt_lightning.gpt import GPT, MLP, CausalSelfAttention
from mingpt_lightning.structure import has_plain_head, is_exactly

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


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch and this processor have a packed layout for matrices of this dtype."""
    ops = torch.ops.mkldnn
    if not hasattr(ops, "_reorder_linear_weight"):
        return False
    return dtype != torch.bfloat16 or bool(ops._is_mkldnn_bf16_supported())


def pack_layers(module: Any) -> None:
    """Pack the linear layers of an attention or MLP in place, if it is this library's own; other modules are kept."""
    if is_exactly(module, CausalSelfAttention):
        module.qkv, module.proj = pack(module.qkv), pack(module.proj)
    elif is_exactly(module, MLP):
        gelu = module.activation
        gelu_tanh = is_exactly(gelu, nn.GELU) and gelu.approximate == "tanh" and is_exactly(module.fc, nn.Linear)
        module.fc, module.proj = pack(module.fc, gelu_tanh), pack(module.proj)
        if gelu_tanh:
            module.activation = nn.Identity()


def pack(layer: nn.Module, gelu_tanh: bool = False) -> nn.Module:
    """A linear layer as a PackedLinear, any other layer as it is."""
    return PackedLinear(cast(nn.Linear, layer), gelu_tanh) if is_exactly(layer, nn.Linear) else layer


def optimize_for_inference(gpt: GPT, dtype: Literal["auto", "float32", "bfloat16"] = "auto") -> GPT:
    """Make a GPT generate faster, in place, on its device; it can't be trained or saved any more.

    Layers of one's own stay as they are.

    dtype: of the weights; "auto" is `fast_dtype`. Raises UserError for another one.
    """
    if dtype not in ("auto", *DTYPES):
        raise UserError(f"dtype={dtype} is not possible", "dtype", nearest(str(dtype), ["auto", *DTYPES]))
    device, n_embd = gpt.token_embedding.weight.device, gpt.config["n_embd"]
    gpt.to(fast_dtype(device, n_embd) if dtype == "auto" else DTYPES[dtype]).requires_grad_(False).eval()
    if device.type == "cpu" and n_embd >= NARROW and can_pack(gpt.token_embedding.weight.dtype):
        for module in list(gpt.modules()):
            pack_layers(module)
        if has_plain_head(gpt):
            cast(Any, gpt).head = PackedLinear(gpt.head)
    return gpt


prepare = optimize_for_inference
"""The former name, which the next version will not have."""

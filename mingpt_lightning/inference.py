"""Optimizes a GPT for inference: the dtype of its weights, and matrices packed in oneDNN's layout on a CPU.

Generating one token of a single row takes as long as reading all weights. PyTorch's linear layers keep a matrix row by
row and reach less than half of a CPU's memory bandwidth; oneDNN, which is part of PyTorch, has a blocked layout that it
reads one and a half to two times as fast, also for several rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from mingpt_lightning.device import NARROW, factors, fast_dtype, multiplies_bfloat16
from mingpt_lightning.errors import UserError, nearest
from mingpt_lightning.gpt import GPT, MLP, CausalSelfAttention
from mingpt_lightning.layers import GatedMLP
from mingpt_lightning.probe import Rates, fastest, rates
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
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype != torch.bfloat16 or multiplies_bfloat16()


def pack_layers(module: Any) -> None:
    """Pack the linear layers of an attention or MLP in place, if it is this library's own; other modules are kept."""
    if is_exactly(module, CausalSelfAttention):
        module.qkv, module.proj = pack(module.qkv), pack(module.proj)
    elif is_exactly(module, GatedMLP):
        module.fc, module.proj = pack(module.fc), pack(module.proj)
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

    dtype: of the weights; "auto" is what is fastest on this device (see `layout`). Raises UserError for another one.
    """
    if dtype not in ("auto", *DTYPES):
        raise UserError(f"dtype={dtype} is not possible", "dtype", nearest(str(dtype), ["auto", *DTYPES]))
    chosen, packed = layout(gpt.token_embedding.weight.device, gpt.config["n_embd"], dtype)
    gpt.to(chosen).requires_grad_(False).eval()
    if packed:
        for module in list(gpt.modules()):
            pack_layers(module)
        if has_plain_head(gpt):
            cast(Any, gpt).head = PackedLinear(gpt.head)
    return gpt


def layout(device: torch.device, n_embd: int, dtype: str = "auto") -> tuple[torch.dtype, bool]:
    """The dtype of weights for generation, and whether matrices are packed. Only dtype="auto" measures anything."""
    if dtype == "auto" and (figures := layout_rates(device, n_embd)):
        name, _, packed = fastest(figures).partition(" ")
        return DTYPES[name], bool(packed)
    chosen = fast_dtype(device, n_embd) if dtype == "auto" else DTYPES[dtype]
    return chosen, device.type == "cpu" and n_embd >= NARROW and can_pack(chosen)


def layout_rates(device: torch.device, width: int) -> Rates:
    """Matrices of this width a second, times a vector, by dtype and layout; nothing where there is no choice.

    There are so many of them (64 MB in float32) that they are read from memory, as in generating a token.
    """
    if device.type != "cpu" or width < NARROW or not can_pack(torch.float32):
        return {}
    count = min(16, 2**24 // factors(1, width)[1].numel())

    def calls() -> dict[str, Callable[[], object]]:
        found: dict[str, Callable[[], object]] = {}
        for name, dtype in DTYPES.items():
            if can_pack(dtype):
                x, weight = (factor.to(dtype) for factor in factors(1, width))
                plain = [skip_init(nn.Linear, *weight.shape[::-1], bias=False, dtype=dtype) for _ in range(count)]
                for layer in plain:
                    layer.weight.copy_(weight)
                for kind, layers in (("", plain), (" packed", [PackedLinear(layer) for layer in plain])):
                    found[f"{name}{kind}"] = partial(lambda x, layers: [layer(x) for layer in layers], x, layers)
        return found

    return rates(f"layouts at width {width}, {torch.get_num_threads()} threads", count, calls)


prepare = optimize_for_inference
"""The former name, which the next version will not have."""

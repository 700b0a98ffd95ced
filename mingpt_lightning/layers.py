"""The layers that a GPT can be built from, by name: activations, norms, positions.

Alternatives are called alike, so a `forward` that uses one has no branch on which it is.

Shapes: B batch, T time, C channels, H heads, D head size.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mingpt_lightning.errors import UserError, nearest


class Identity(nn.Module):
    """Returns its first argument: takes the place of a layer that is left out, whatever else that one takes."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x


class ReLUSquared(nn.Module):
    """max(x, 0) squared. Source: So et al. 2021, "Primer", section 4."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


class LearnedPositions(nn.Embedding):
    """Adds a learned embedding of the position to every token. x: (B, T, C), positions: (T,) or (B, T)."""

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:  # type: ignore[override]
        return x + super().forward(positions)


class RotaryPositions(nn.Module):
    """Rotates pairs of channels by angles proportional to the position, so that q·k depends on the distance only.

    x: (..., T, D), positions: (T,) or (B, T). Source: Su et al. 2021, "RoFormer", section 3.4.2.
    """

    cos: Tensor  # (block_size, D)
    sin: Tensor

    def __init__(self, head_size: int, block_size: int):
        super().__init__()
        if head_size % 2:
            fix = "Choose n_head so that n_embd / n_head is even."
            raise UserError(f"heads of {head_size} channels cannot be rotated in pairs", "n_head", fix)
        inv_freq = 10000.0 ** -(torch.arange(0, head_size, 2) / head_size)
        angles = torch.arange(block_size)[:, None] * inv_freq
        self.register_buffer("cos", torch.cat([angles.cos(), angles.cos()], dim=-1), persistent=False)
        self.register_buffer("sin", torch.cat([-angles.sin(), angles.sin()], dim=-1), persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        cos, sin = self.cos[positions], self.sin[positions]
        if positions.dim() == 2:
            cos, sin = cos[:, None], sin[:, None]  # the same for all heads
        left, right = x.chunk(2, dim=-1)
        return (x * cos + torch.cat([right, left], dim=-1) * sin).type_as(x)


class HeadNorm(nn.RMSNorm):
    """RMSNorm of each query and key, with one learned gain for all heads. (..., D) -> (..., D)

    Source: Henry et al. 2020, "Query-Key Normalization for Transformers", with RMS for L2.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.type_as(x), self.eps)


class Softcap(nn.Module):
    """Bounds logits smoothly to (-cap, cap). Source: Gemma Team 2024, "Gemma 2", section 2."""

    def __init__(self, cap: float):
        super().__init__()
        self.cap = cap

    def forward(self, logits: Tensor) -> Tensor:
        return self.cap * torch.tanh(logits / self.cap)

    def extra_repr(self) -> str:
        return f"cap={self.cap}"


T = TypeVar("T")

Activation = Literal["gelu_tanh", "gelu", "relu", "silu", "relu_squared"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "relu_squared": ReLUSquared,
}

Norm = Literal["layernorm", "rmsnorm"]
NORMS: dict[str, Callable[..., nn.Module]] = {
    "layernorm": nn.LayerNorm,
    "rmsnorm": lambda n, eps, bias: nn.RMSNorm(n, eps),  # never has a bias
}

Position = Literal["learned", "rotary"]
POSITIONS: dict[str, tuple[Callable[[int, int], nn.Module], Callable[[int, int], nn.Module]]] = {
    # on the token embeddings: (block_size, n_embd), and in each attention: (head size, block_size)
    "learned": (LearnedPositions, lambda *_: Identity()),
    "rotary": (lambda *_: Identity(), RotaryPositions),
}


def choose(what: str, name: str, table: Mapping[str, T]) -> T:
    """The entry of a table of choices. Raises UserError, listing the names, when there is no such entry."""
    if name not in table:
        raise UserError(f"{what}={name} is not known", what, nearest(str(name), table))
    return table[name]

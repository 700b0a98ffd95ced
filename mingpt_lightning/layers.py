"""The layers that a GPT can be built from, by name: activations, norms, positions, gates.

Alternatives are called alike, so a `forward` that uses one has no branch on which it is.

Shapes: B batch, T time, C channels, H heads, D head size.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mingpt_lightning.errors import UserError, nearest, require_number


class Identity(nn.Module):
    """Returns its first argument: takes the place of a layer that is left out, whatever else that one takes."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x). Source: Hendrycks and Gimpel 2016, "GELUs", section 2."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


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

    x: (..., T, D), positions: (T,) or (B, T). Pair i turns by theta^(-2i/D) at each position, less if scaled.
    Source: Su et al. 2021, "RoFormer", section 3.4.2.
    """

    cos: Tensor  # (block_size, D)
    sin: Tensor

    def __init__(
        self, head_size: int, block_size: int, theta: float = 10000.0, scaling: Mapping[str, Any] | None = None
    ):
        super().__init__()
        if head_size % 2:
            fix = "Choose an even head_dim, or n_head so that n_embd / n_head is even."
            raise UserError(f"heads of {head_size} channels cannot be rotated in pairs", "n_head", fix)
        if scaling is not None and not isinstance(scaling, Mapping):
            raise UserError(f"rope_scaling={scaling} is no mapping", "rope_scaling", "Give rope_type and its settings.")
        settings = {"rope_type": "none"} if scaling is None else dict(scaling)
        scale = choose("rope_scaling", settings.pop("rope_type", None), SCALINGS)
        check_settings("rope_scaling", settings, scale)
        self.head_size, self.block_size, self.theta = head_size, block_size, theta
        self.scale = partial(scale, **settings)
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Compute the buffers, on the default device: for a module that was made on the meta device."""
        frequencies = self.scale(self.theta ** -(torch.arange(0, self.head_size, 2) / self.head_size))
        angles = torch.arange(self.block_size)[:, None] * frequencies
        self.register_buffer("cos", torch.cat([angles.cos(), angles.cos()], dim=-1), persistent=False)
        self.register_buffer("sin", torch.cat([-angles.sin(), angles.sin()], dim=-1), persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        cos, sin = self.cos[positions], self.sin[positions]
        if positions.dim() == 2:
            cos, sin = cos[:, None], sin[:, None]  # the same for all heads
        left, right = x.chunk(2, dim=-1)
        return (x * cos + torch.cat([right, left], dim=-1) * sin).type_as(x)


def unscaled(frequencies: Tensor) -> Tensor:
    """As they are."""
    return frequencies


def scale_linearly(frequencies: Tensor, factor: float) -> Tensor:
    """Positions are `factor` times closer together. Source: Chen et al. 2023, "Positional Interpolation"."""
    return frequencies / factor


def scale_as_llama3(
    frequencies: Tensor,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> Tensor:
    """Slow rotations are `factor` times slower, fast ones stay, and between them it is interpolated.

    Slow, fast: less than `low_freq_factor`, more than `high_freq_factor` turns within the original positions. Raises
    UserError where the first isn't less than the second.
    Source: Grattafiori et al. 2024, "Llama 3", and the code of Llama 3.1.
    """
    if low_freq_factor >= high_freq_factor:
        what = f"rope_scaling has low_freq_factor={low_freq_factor}, and high_freq_factor={high_freq_factor}"
        raise UserError(what, "rope_scaling", "Give a high_freq_factor that is larger.")
    turns = original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return (1 - kept) * frequencies / factor + kept * frequencies


SCALINGS: dict[str | None, Callable[..., Tensor]] = {
    "none": unscaled,
    "linear": scale_linearly,
    "llama3": scale_as_llama3,
}


class HeadNorm(nn.RMSNorm):
    """RMSNorm of each query and key, with one learned gain for all heads. (..., D) -> (..., D)

    Source: Henry et al. 2020, "Query-Key Normalization for Transformers", with RMS for L2.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.type_as(x), self.eps)


class SeparateHeadNorm(nn.Module):
    """RMSNorm of each query and key, with a gain for queries and one for keys. (B, H + keys' heads, T, D) -> the same

    Source: Yang et al. 2025, "Qwen3 Technical Report", section 2.
    """

    def __init__(self, n_head: int, n_kv_head: int, head_size: int, eps: float):
        super().__init__()
        self.n_head, self.n_kv_head, self.eps = n_head, n_kv_head, eps
        self.q = nn.Parameter(torch.ones(head_size))
        self.k = nn.Parameter(torch.ones(head_size))

    def forward(self, x: Tensor) -> Tensor:
        gains = torch.cat([self.q.expand(self.n_head, 1, -1), self.k.expand(self.n_kv_head, 1, -1)])
        return F.rms_norm(x, self.q.shape, None, self.eps) * gains.type_as(x)


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

Activation = Literal["gelu_tanh", "gelu", "quick_gelu", "relu", "silu", "relu_squared"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "gelu": nn.GELU,
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "relu_squared": ReLUSquared,
}

Norm = Literal["layernorm", "rmsnorm"]
NORMS: dict[str, Callable[..., nn.Module]] = {
    "layernorm": nn.LayerNorm,
    "rmsnorm": lambda n, eps, bias: nn.RMSNorm(n, eps),  # never has a bias
}

QK_NORMS: dict[bool | str, Callable[[int, int, int, float], nn.Module]] = {  # heads, those of keys, their size, eps
    False: lambda *_: Identity(),
    True: lambda n_head, n_kv_head, head_size, eps: HeadNorm(head_size, eps),
    "separate": SeparateHeadNorm,
}

Position = Literal["learned", "rotary"]
POSITIONS: dict[str, tuple[Callable[[int, int], nn.Module], Callable[..., nn.Module]]] = {
    # on the token embeddings: (block_size, n_embd), and in all attentions: as for RotaryPositions
    "learned": (LearnedPositions, lambda *_: Identity()),
    "rotary": (lambda *_: Identity(), RotaryPositions),
}


class GatedMLP(nn.Module):
    """An MLP whose inside is multiplied by gates: SwiGLU with activation="silu", GeGLU with "gelu".

    Source: Shazeer 2020, "GLU Variants Improve Transformer".
    """

    def __init__(self, n_embd: int, n_inner: int | None = None, activation: Activation = "silu", *, bias: bool = True):
        super().__init__()
        self.fc = nn.Linear(n_embd, 2 * (n_inner or 4 * n_embd), bias)
        self.activation = choose("activation", activation, ACTIVATIONS)()
        self.proj = nn.Linear(n_inner or 4 * n_embd, n_embd, bias)

    def forward(self, x: Tensor) -> Tensor:
        gates, inside = self.fc(x).chunk(2, dim=-1)
        return self.proj(self.activation(gates) * inside)


def choose(what: str, name: Any, table: Mapping[Any, T]) -> T:
    """The entry of a table of choices. Raises UserError, listing the names, when there is no such entry."""
    if not isinstance(name, str | bool | None) or name not in table:
        raise UserError(f"{what}={name} is not known", what, nearest(str(name), map(str, table)))
    return table[name]


def check_settings(what: str, settings: Mapping[str, Any], call: Callable[..., Any]) -> None:
    """Raise UserError for settings other than positive numbers, one for each argument of a call after the first."""
    names = [*inspect.signature(call).parameters][1:]
    if {*settings} != {*names}:
        raise UserError(f"{what} has {', '.join(settings) or 'no setting'}", what, f"Give {', '.join(names)}.")
    try:
        require_number(**settings)
    except UserError as error:
        raise UserError(f"{what} has {error.what}", what, error.fix) from error

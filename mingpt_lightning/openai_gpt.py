"""GPT-1 in Hugging Face's layout, read as a GPT-2 whose layers are normalised after each sum, without a last norm.

Source: transformers, `OpenAIGPTLMHeadModel`, whose names and defaults these are; Radford et al. 2018, "Improving
Language Understanding by Generative Pre-Training".
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mingpt_lightning.errors import CheckpointError

ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "swish"}
"""Its names for activations: GPT-2's. What it calls gelu is the tanh approximation."""

EMBEDDINGS = {"tokens_embed.weight": "wte.weight", "positions_embed.weight": "wpe.weight"}

GPT2_ONLY = (
    *("n_inner", "activation_function", "add_cross_attention", "scale_attn_weights"),
    *("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"),
)
"""Settings of GPT-2 that GPT-1 lacks: its MLP is four times as wide inside."""


def as_gpt2(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings of a GPT-1 under the names of GPT-2's; path: of its config.json, for errors."""
    activation = config.get("afn", "gelu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        what = f"{path} has afn={str(activation)[:60]}, and this GPT takes one of {', '.join(ACTIVATIONS)}"
        raise CheckpointError(what, "name", "Choose a language model in Hugging Face's layout.")
    defaults = {"vocab_size": 40478, "n_positions": 512}
    known = {name: value for name, value in config.items() if name not in GPT2_ONLY}
    return defaults | known | {"model_type": "gpt2", "activation_function": ACTIVATIONS[activation]}


def under_gpt2_names(tensors: Iterable[tuple[str, Tensor]], name: str) -> Iterator[tuple[str, Tensor]]:
    """The weights under the names of GPT-2's, from which only those of the embeddings differ; name: where they are."""
    for stored, tensor in tensors:
        inside = stored.removeprefix("transformer.")
        yield EMBEDDINGS.get(inside, stored), tensor


def from_gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `as_gpt2`."""
    names = {theirs: name for name, theirs in reversed(ACTIVATIONS.items())}
    known = {name: value for name, value in config.items() if name not in GPT2_ONLY}
    return known | {"afn": names[config["activation_function"]]}


def from_gpt2_names(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The inverse of `under_gpt2_names`, without a prefix."""
    names = {theirs: name for name, theirs in EMBEDDINGS.items()}
    for name, tensor in tensors:
        yield names.get(name, name), tensor

"""Which of transformers' architectures computes what a GPT does; any other model is refused by name.

Notable: one table says what each architecture takes from the constructor of GPT, and the one with the fewest
differences is either the model's or the one that its refusal speaks of.
"""

from collections.abc import Collection, Mapping
from typing import Any

from mingpt_lightning import imagegpt, llama
from mingpt_lightning.errors import UserError
from mingpt_lightning.gpt import GPT
from mingpt_lightning.structure import check_exportable

CONV1D = {
    "gpt2": "GPT2LMHeadModel",
    "imagegpt": "ImageGPTForCausalImageModeling",
    "openai-gpt": "OpenAIGPTLMHeadModel",
}
"""What is written with the names of GPT-2's weights, in transformers' Conv1D, and the class that reads it."""

NAMES = {"gpt2": "GPT-2", "imagegpt": "ImageGPT", "openai-gpt": "GPT-1"}

GPT2 = {
    "norm": "layernorm",
    "norm_order": "pre",
    "mlp": "plain",
    "n_kv_head": None,
    "head_dim": None,
    "position": "learned",
    "qk_norm": False,
    "n_output": None,
    "logit_softcap": None,
}
LLAMA = {
    "norm": "rmsnorm",
    "norm_order": "pre",
    "mlp": "gated",
    "position": "rotary",
    "qk_norm": False,
    "n_output": None,
    "logit_softcap": None,
}


def wanted(ours: Mapping[str, Any]) -> dict[str, dict[str, Collection[Any]]]:
    """The values that each architecture can have, by its model_type, for a GPT of these constructor arguments."""
    alike: dict[str, dict[str, Any]] = {
        "openai-gpt": GPT2 | {"norm_order": "post"},
        "gpt2": GPT2,
        "imagegpt": GPT2 | imagegpt.OURS | {"n_output": ours["vocab_size"] - 1},
        **{kind: LLAMA | it.arguments for kind, it in llama.ARCHITECTURES.items()},
    }
    several: dict[str, dict[str, Collection[Any]]] = {
        "openai-gpt": {"n_inner": (None, 4 * ours["n_embd"]), "activation": ["gelu_tanh", "relu", "silu"]},
        **{kind: {"activation": [*llama.ACTIVATIONS.values()]} for kind in llama.ARCHITECTURES},
    }
    return {kind: {name: [value] for name, value in alike[kind].items()} | several.get(kind, {}) for kind in alike}


def architecture_of(gpt: GPT) -> str:
    """The model_type of the architecture that computes what a GPT does, with an adapter or without.

    Raises UserError, naming the first difference from the architecture that is nearest, where there is none.
    """
    different = {
        kind: [name for name, values in needs.items() if gpt.config[name] not in values]
        for kind, needs in wanted(gpt.config).items()
    }
    kind = min(different, key=lambda kind: len(different[kind]))  # of equals the first
    for name in different[kind]:
        what = f"transformers' {NAMES.get(kind, kind.capitalize())} has no {name}={gpt.config[name]}"
        fix = "Only models with the layers of GPT-1, GPT-2, ImageGPT, Llama, Qwen2 or Qwen3 can be exported."
        raise UserError(what, name, fix)
    check_exportable(gpt)
    return kind

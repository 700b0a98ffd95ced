"""Llama and its relatives in Hugging Face's layout: what their config.json and the names of their weights mean for GPT.

A table per architecture says how it differs from Llama; whatever GPT would compute differently is refused by name.
Sources: transformers, `LlamaForCausalLM`, `MistralForCausalLM`, `Qwen2ForCausalLM`, `Qwen3ForCausalLM`, whose names and
defaults these are; Touvron et al. 2023, "LLaMA"; Yang et al. 2024 and 2025, "Qwen2" and "Qwen3 Technical Report".
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mingpt_lightning.console import console
from mingpt_lightning.errors import CheckpointError, UserError, check_gpt_sizes

WHERE, FIX = "name", "Choose a language model in Hugging Face's layout that is listed in docs/generation.md."


class Architecture(NamedTuple):
    """How an architecture differs from Llama: constructor arguments of GPT, and defaults of its config.json.

    windowed: whether its config may limit how far back a position sees, by the settings of `window`.
    """

    arguments: dict[str, Any]
    defaults: dict[str, Any]
    windowed: bool = False


ARCHITECTURES = {
    "llama": Architecture({"bias": False}, {"max_position_embeddings": 2048}),
    "mistral": Architecture(
        {"bias": False}, {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096}, True
    ),
    "qwen2": Architecture({"bias": "qkv"}, {"max_position_embeddings": 32768, "num_key_value_heads": 32}, True),
    "qwen3": Architecture(
        {"bias": False, "qk_norm": "separate"},
        {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
        True,
    ),
}

SIZES = {  # ours: theirs, their default
    "vocab_size": ("vocab_size", 32000),
    "n_layer": ("num_hidden_layers", 32),
    "n_head": ("num_attention_heads", 32),
    "n_kv_head": ("num_key_value_heads", None),
    "n_embd": ("hidden_size", 4096),
    "n_inner": ("intermediate_size", 11008),
    "block_size": ("max_position_embeddings", 2048),
}
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu"}
ONLY = {  # the one value of a setting that GPT computes
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
}
PIECES = {  # theirs, within a layer: ours, under GPT-2's names, and which part of it, of how many
    "input_layernorm": ("ln_1", 0, 1),
    "self_attn.q_proj": ("attn.c_attn", 0, 3),
    "self_attn.k_proj": ("attn.c_attn", 1, 3),
    "self_attn.v_proj": ("attn.c_attn", 2, 3),
    "self_attn.o_proj": ("attn.c_proj", 0, 1),
    "post_attention_layernorm": ("ln_2", 0, 1),
    "mlp.gate_proj": ("mlp.c_fc", 0, 2),
    "mlp.up_proj": ("mlp.c_fc", 1, 2),
    "mlp.down_proj": ("mlp.c_proj", 0, 1),
}
OTHERS = {
    "model.embed_tokens.weight": "wte.weight",
    "model.norm.weight": "ln_f.weight",
    "lm_head.weight": "lm_head.weight",
}
NORMS = {"self_attn.q_norm.weight": "attn.qk_norm.q", "self_attn.k_norm.weight": "attn.qk_norm.k"}
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def llama_arguments(config: dict[str, Any], path: Path) -> tuple[dict[str, Any], list[float]]:
    """What a config.json of one of these architectures means for the constructor of GPT; path: where it is.

    Also factors of queries, of which there are none.

    Raises CheckpointError, naming the setting, for what that cannot express.
    """
    kind = ARCHITECTURES[config["model_type"]]
    config = kind.defaults | config

    def take(key: str, default: Any, usable: Callable[[Any], bool], rule: str) -> Any:
        value = config.get(key, default)
        if value is not default and not usable(value):
            raise CheckpointError(f"{path} has {key}={str(value)[:60]}, and this GPT takes {rule}", WHERE, FIX)
        return value

    def is_size(value: Any) -> bool:
        return type(value) is int and 0 < value < 2**31

    def is_number(value: Any) -> bool:
        return type(value) in (int, float) and 0 < value < 1e12

    for key, value in ONLY.items():
        take(key, value, [value].__contains__, f"{key}={value} only")
    sizes = {ours: take(key, default, is_size, "a positive integer") for ours, (key, default) in SIZES.items()}
    sizes["head_dim"] = take("head_dim", None, lambda value: value is None or is_size(value), "a positive integer")
    known = f"one of {', '.join(ACTIVATIONS)}"
    activation = ACTIVATIONS[take("hidden_act", "silu", [*ACTIVATIONS].__contains__, known)]
    dropout = take("attention_dropout", 0.0, lambda value: value == 0 or (is_number(value) and value < 1), "a rate")
    try:
        check_gpt_sizes(sizes["n_layer"], sizes["n_head"], sizes["n_embd"], 0.0, sizes["n_kv_head"], sizes["head_dim"])
    except UserError as error:
        raise CheckpointError(f"{path}: {error.what}", WHERE, FIX) from error
    theta, scaling = rotation(config, path)
    arguments = {
        **sizes,
        "mlp": "gated",
        "activation": activation,
        "norm": "rmsnorm",
        "norm_eps": take("rms_norm_eps", 1e-6, is_number, "a positive number"),
        "position": "rotary",
        "rope_theta": theta,
        "rope_scaling": scaling,
        "dropout": [0.0, dropout, 0.0] if dropout else 0.0,
        "tie_embeddings": take("tie_word_embeddings", False, [True, False].__contains__, "true or false"),
        **kind.arguments,
    }
    seen = window(config) if kind.windowed else None
    if seen is not None and not is_size(seen):
        raise CheckpointError(f"{path} has sliding_window={str(seen)[:60]}, not a positive integer", WHERE, FIX)
    if seen is not None and seen < arguments["block_size"]:
        console.print(f"note: a position sees {seen} tokens back, so the context is {seen} tokens", markup=False)
        arguments["block_size"] = seen
    return arguments, []


def window(config: dict[str, Any]) -> Any:
    """How far back a position sees, if less than all: up to that many tokens, nothing differs from full attention."""
    layers = config.get("layer_types")
    limited = config["use_sliding_window"] if "use_sliding_window" in config else config["model_type"] == "mistral"
    if isinstance(layers, list) and all(layer == "full_attention" for layer in layers):
        limited = False
    return config.get("sliding_window") if limited else None


def rotation(config: dict[str, Any], path: Path) -> tuple[float, dict[str, Any] | None]:
    """theta and scaling of rotary positions, as `RotaryPositions` takes them.

    transformers 5 keeps both in rope_parameters, earlier versions in rope_theta and rope_scaling.
    """
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} has rope settings {str(settings)[:60]}, not a section of keys", WHERE, FIX)
    settings = dict(settings)
    theta = settings.pop("rope_theta", config.get("rope_theta", 10000.0))
    kind = settings.pop("rope_type", settings.pop("type", "default"))
    settings.pop("type", None)
    if settings.pop("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError(f"{path} rotates a part of each head, and this GPT all of it", WHERE, FIX)
    if type(theta) not in (int, float) or not 0 < theta < 1e12:
        raise CheckpointError(f"{path} has rope_theta={str(theta)[:60]}, not a positive number", WHERE, FIX)
    if kind == "default":
        return float(theta), None
    if kind not in ("linear", "llama3"):
        what = f"{path} has rope_type={str(kind)[:60]}, and this GPT takes default, linear or llama3"
        raise CheckpointError(what, WHERE, FIX)
    wanted = {
        "linear": ["factor"],
        "llama3": ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
    }
    for name in wanted[kind]:
        if type(settings.get(name)) not in (int, float) or not 0 < settings[name] < 1e12:
            what = f"{path} has {name}={str(settings.get(name))[:60]} for rope_type={kind}, not a positive number"
            raise CheckpointError(what, WHERE, FIX)
    if kind == "llama3" and settings["low_freq_factor"] >= settings["high_freq_factor"]:
        what = f"{path} has low_freq_factor={settings['low_freq_factor']}, which is not less than high_freq_factor"
        raise CheckpointError(what, WHERE, FIX)
    return float(theta), {"rope_type": kind, **{name: settings[name] for name in wanted[kind]}}


def under_gpt2_names(tensors: Iterable[tuple[str, Tensor]], name: str) -> Iterator[tuple[str, Tensor]]:
    """The weights under the names of GPT-2's, those that are one matrix in GPT put together; name: where they are.

    Raises CheckpointError for a weight that none of these architectures has, and for one whose sisters are missing.
    """
    waiting: dict[str, dict[int, Tensor]] = {}
    for stored, tensor in tensors:
        found = LAYER.fullmatch(stored)
        if stored.endswith("rotary_emb.inv_freq"):
            continue
        if stored in OTHERS:
            yield OTHERS[stored], tensor
            continue
        inside, _, kind = found[2].rpartition(".") if found else ("", "", "")
        if found and found[2] in NORMS:
            yield f"h.{found[1]}.{NORMS[found[2]]}", tensor
        elif found and inside in PIECES and kind in ("weight", "bias"):
            ours, number, count = PIECES[inside]
            whole = f"h.{found[1]}.{ours}.{kind}"
            parts = waiting.setdefault(whole, {})
            parts[number] = tensor
            if len(parts) == count:
                del waiting[whole]
                same = len({part.shape[1:] for part in parts.values()}) == 1
                if not same:
                    shapes = ", ".join(str([*part.shape]) for part in parts.values())
                    raise CheckpointError(f"the weights of {name} at {stored} have shapes {shapes}", WHERE, FIX)
                yield whole, torch.cat([parts[i] for i in range(count)]) if count > 1 else tensor
        else:
            raise CheckpointError(f"{name} has a weight {stored}, which this GPT has no place for", WHERE, FIX)
    if waiting:
        names = {whole: [key for key, piece in PIECES.items() if whole.split(".", 2)[2].startswith(piece[0])]
                 for whole in waiting}  # fmt: skip
        whole, parts = next(iter(waiting.items()))
        missing = next(key for key in names[whole] if PIECES[key][1] not in parts)
        layer, kind = whole.split(".")[1], whole.rpartition(".")[2]
        what = f"{name} has no model.layers.{layer}.{missing}.{kind}"
        raise CheckpointError(what, WHERE, "Download it again.")


def llama_config(kind: str, ours: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a GPT of these constructor arguments, for transformers 4 and 5."""
    heads, dropout = ours["n_head"], ours["dropout"]
    sizes = ours | {"n_kv_head": ours["n_kv_head"] or heads, "n_inner": ours["n_inner"] or 4 * ours["n_embd"]}
    names = {value: name for name, value in reversed(ACTIVATIONS.items())}
    scaling = ours["rope_scaling"]
    return {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "model_type": kind,
        **{theirs: sizes[name] for name, (theirs, _) in SIZES.items()},
        "head_dim": ours["head_dim"] or ours["n_embd"] // heads,
        "hidden_act": names[ours["activation"]],
        "rms_norm_eps": ours["norm_eps"],
        "rope_theta": ours["rope_theta"],
        "rope_scaling": scaling,
        "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": ours["rope_theta"]},
        "attention_dropout": dropout[1] if isinstance(dropout, list) else dropout,
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
        "tie_word_embeddings": ours["tie_embeddings"],
    }


def under_llama_names(weights: Iterable[tuple[str, Tensor]], ours: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The inverse of `under_gpt2_names`: weights under GPT-2's names under Llama's, those of one matrix apart.

    ours: the constructor arguments of their GPT.
    """
    D = ours["head_dim"] or ours["n_embd"] // ours["n_head"]
    rows = [ours["n_head"] * D, *[(ours["n_kv_head"] or ours["n_head"]) * D] * 2]  # of queries, keys and values
    outside = {name: theirs for theirs, name in OTHERS.items()}
    norms = {name: theirs for theirs, name in NORMS.items()}
    for name, weight in weights:
        if name in outside:
            yield outside[name], weight
            continue
        _, layer, inside = name.split(".", 2)
        place, _, kind = inside.rpartition(".")
        if inside in norms:
            yield f"model.layers.{layer}.{norms[inside]}", weight
            continue
        pieces = [theirs for theirs, (whole, _, _) in PIECES.items() if whole == place]
        sizes = rows if len(pieces) == len(rows) else [len(weight) // len(pieces)] * len(pieces)
        for theirs, part in zip(pieces, weight.split(sizes), strict=True):
            yield f"model.layers.{layer}.{theirs}.{kind}", part

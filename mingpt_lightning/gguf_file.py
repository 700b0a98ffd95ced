"""GGUF, llama.cpp's file of a model: its settings and weights, as if they were a folder in Hugging Face's layout.

Notable: the `gguf` package reads the file and dequantises it; a quantised weight becomes float32. What the settings say
and config.json cannot is refused by name. This module doesn't know which models a GPT can compute.

Source: llama.cpp, `gguf-py` and `convert_hf_to_gguf.py`, whose names these are.
"""

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mingpt_lightning.errors import CheckpointError, UserError
from mingpt_lightning.hub import WHERE, unreadable

if TYPE_CHECKING:
    from torch import Tensor

LLAMA = {  # config.json's name: GGUF's, after that of the architecture
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "sliding_window": "attention.sliding_window",
}
GPT2 = {
    "n_layer": "block_count",
    "n_positions": "context_length",
    "n_embd": "embedding_length",
    "n_inner": "feed_forward_length",
    "n_head": "attention.head_count",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}
SETTINGS = {"llama": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA, "gpt2": GPT2}
"""The settings of each architecture that is read."""

OTHERS = {
    "vocab_size",
    "rope.dimension_count",
    "attention.value_length",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
}
"""Settings that are checked or follow from others."""

LLAMA_NAMES = {  # a weight's name, without its layer: Hugging Face's
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GPT2_NAMES = {
    "token_embd": "wte",
    "position_embd": "wpe",
    "output_norm": "ln_f",
    "output": "lm_head",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
FREQUENCIES = "rope_freqs.weight"
"""The factors by which rotations are slower, which llama.cpp writes for Llama 3 instead of its settings."""

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What all versions of Llama 3 have."""


def is_gguf(path: str | Path) -> bool:
    """Whether this is a GGUF file, by its first bytes."""
    path = Path(path).expanduser()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def plain(value: Any) -> Any:
    """A setting as it was written, before it became a number of 32 bits: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


class GGUFFile:
    """A GGUF file, whose `metadata` is read and whose `tensors` are, as they are asked for.

    Raises CheckpointError for a file that is damaged, a part of a model, or of an architecture not in SETTINGS.
    """

    def __init__(self, path: Path):
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise UserError(f"{path} needs the package gguf", WHERE, "Run pip install gguf.") from error
        self.path = path
        try:
            reader = GGUFReader(path)
            self.metadata: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        except Exception as error:  # whatever such a file makes its reader raise
            size = path.stat().st_size
            what = f"{path} cannot be read: its {size:,} bytes are damaged, or not all of the file"
            raise CheckpointError(what, WHERE, "Download it again.") from error
        self.stored = {tensor.name: tensor for tensor in reader.tensors}
        if (parts := self.metadata.get("split.count", 1)) > 1:
            what = f"{path} is one of {parts} files of a model"
            raise CheckpointError(what, WHERE, "Join them by llama-gguf-split --merge FIRST OUTPUT.")
        self.architecture = str(self.metadata.get("general.architecture"))
        if self.architecture not in SETTINGS:
            what = f"{path} has general.architecture={self.architecture[:60]}, and this GPT takes {', '.join(SETTINGS)}"
            raise CheckpointError(what, WHERE, "Choose a model of one of these.")

    def config(self) -> dict[str, Any]:
        """Its settings under config.json's names. Raises CheckpointError for one that config.json cannot express."""
        prefix = f"{self.architecture}."
        own = {key.removeprefix(prefix): value for key, value in self.metadata.items() if key.startswith(prefix)}
        names = SETTINGS[self.architecture]
        config = {name: plain(own[key]) for name, key in names.items() if key in own}
        if unknown := [key for key in own if own[key] and key not in {*names.values()} | OTHERS]:
            raise self.refuse(f"{prefix}{unknown[0]}={str(own[unknown[0]])[:60]}", "no such setting")
        embedding, head = self.stored.get("token_embd.weight"), self.stored.get("output.weight")
        if embedding is None:
            raise CheckpointError(f"{self.path} has no token_embd.weight", WHERE, "Download it again.")
        tied = head is None or (head.data.shape == embedding.data.shape and np.array_equal(head.data, embedding.data))
        config |= {"vocab_size": int(embedding.shape[1]), "tie_word_embeddings": bool(tied)}
        if self.architecture == "gpt2":
            return config | {"model_type": "gpt2", **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)}
        config.setdefault("num_key_value_heads", config.get("num_attention_heads"))
        try:
            head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise self.refuse("no usable sizes", "positive integers") from error
        for key in ("rope.dimension_count", "attention.value_length"):
            if own.get(key, head_dim) != head_dim:
                raise self.refuse(f"{prefix}{key}={str(own[key])[:60]}", f"the size of a head, {head_dim}")
        windowed = "sliding_window" in config
        kind = "mistral" if windowed and self.architecture == "llama" else self.architecture
        scaling = self.scaling(own, config.get("rope_theta", 10000.0), head_dim)
        return config | {"model_type": kind, "use_sliding_window": windowed, "rope_scaling": scaling}

    def scaling(self, own: dict[str, Any], theta: float, head_dim: int) -> dict[str, Any] | None:
        """How its rotations are scaled, as config.json says it."""
        kind, tensor = own.get("rope.scaling.type", "none"), self.stored.get(FREQUENCIES)
        if tensor is None:
            return None if kind == "none" else {"rope_type": kind, "factor": own.get("rope.scaling.factor")}
        factors = np.asarray(tensor.data, dtype=np.float64)
        turns = LLAMA3["original_max_position_embeddings"] * theta ** -(np.arange(0, head_dim, 2) / head_dim) / math.tau
        low, high, factor = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"], float(factors.max())
        kept = np.clip((turns - low) / (high - low), 0, 1)
        if factors.shape != turns.shape or not np.allclose(factors, 1 / ((1 - kept) / factor + kept), rtol=1e-3):
            raise self.refuse(f"{FREQUENCIES} of its own", "those of Llama 3")
        return {"rope_type": "llama3", "factor": round(factor, 3), **LLAMA3}

    def refuse(self, what: str, known: str) -> CheckpointError:
        """The error for a setting."""
        return CheckpointError(f"{self.path} has {what}, and this GPT takes {known}", WHERE, "Choose another model.")

    def tensors(self) -> "Iterator[tuple[str, Tensor]]":
        """Hugging Face's name and the value of each weight, the largest first, each in memory of its own."""
        names = GPT2_NAMES if self.architecture == "gpt2" else LLAMA_NAMES
        layers = "h" if self.architecture == "gpt2" else "model.layers"
        for tensor in sorted(self.stored.values(), key=lambda tensor: -int(tensor.n_elements)):
            found = re.fullmatch(r"(blk\.(\d+)\.)?(\w+)(\.weight|\.bias)", tensor.name)
            if tensor.name == FREQUENCIES:
                continue
            if found is None or found[3] not in names:
                yield tensor.name, self.value(tensor)
                continue
            yield f"{layers}.{found[2]}." * bool(found[1]) + names[found[3]] + found[4], self.value(tensor)

    def value(self, tensor: Any) -> "Tensor":
        """A weight dequantised, its rows in Hugging Face's order."""
        import torch
        from gguf import quants

        try:
            value = torch.from_numpy(np.array(quants.dequantize(tensor.data, tensor.tensor_type)))
        except NotImplementedError as error:
            what = f"{self.path} keeps {tensor.name} as {tensor.tensor_type.name}, which gguf cannot dequantise"
            raise CheckpointError(what, WHERE, "Choose another quantisation, such as Q8_0 or F16.") from error
        except Exception as error:  # whatever damaged data raises
            raise unreadable(self.path, error) from error
        kind = {"F16": torch.float16, "BF16": torch.bfloat16}.get(tensor.tensor_type.name, torch.float32)
        heads = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
        part = tensor.name.split(".")[-2]
        if self.architecture == "llama" and part in heads:  # llama.cpp rotates neighbours, the others two halves
            count = self.metadata.get(f"llama.{heads[part]}") or self.metadata["llama.attention.head_count"]
            value = value.unflatten(0, (count, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()
        return value.to(kind)


@lru_cache(maxsize=1)
def open_version(path: Path, version: tuple[int, int]) -> GGUFFile:
    """The file in one of its versions."""
    return GGUFFile(path)


def open_gguf(path: str | Path) -> GGUFFile:
    """A GGUF file; the newest one is kept open, as its vocabulary takes seconds to read."""
    path = Path(path).expanduser()
    state = path.stat()
    return open_version(path, (state.st_mtime_ns, state.st_size))

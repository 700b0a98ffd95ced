"""The weights of a GPT-2 in files: their names and shapes, in Hugging Face's layout and in that of other programs.

A file of weights alone is a checkpoint of nanoGPT, minGPT or a Lightning module, or a bare state_dict. Shapes tell all
sizes but the number of heads, which comes from what the file or a config.json beside it says, from the well-known width
of a GPT-2, or from the caller.

Sources: transformers, `GPT2LMHeadModel`; nanoGPT, `train.py` and `model.py`; minGPT, `model.py`.
"""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mingpt_lightning.console import console
from mingpt_lightning.errors import CheckpointError, UserError
from mingpt_lightning.gpt import GPT
from mingpt_lightning.hub import load_tensors, read_json

WHERE, FIX = "name", "Choose a GPT-2 language model in Hugging Face's layout."

PARTS = {  # of a parameter's name: ours to theirs
    "token_embedding": "wte",
    "position_embedding": "wpe",
    "blocks": "h",
    "norm_1": "ln_1",
    "norm_2": "ln_2",
    "norm": "ln_f",
    "qkv": "c_attn",
    "fc": "c_fc",
    "proj": "c_proj",
    "head": "lm_head",
}
PARTS_OF_GPT2 = ("h.", "wte.", "wpe.", "ln_f.", "lm_head.")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
HEADS = {768: 12, 1024: 16, 1280: 20, 1600: 25, 512: 16, 192: 6, 128: 4, 48: 3}
"""Heads by width, of GPT-2 and of minGPT's smaller models."""

PREFIX = re.compile(r"^((module|_orig_mod|model|gpt|transformer)\.)+")
"""What wrappers put before the names of GPT-2's parameters: DataParallel, torch.compile, modules that hold a GPT."""

MASK = re.compile(r"h\.\d+\.attn\.(masked_)?bias")
"""Old files hold their causal masks."""


class Weights(NamedTuple):
    """Where weights are, and a GPT that computes with them: its arguments, and factors of each layer's queries.

    tensors: stored names and values; where `mapped`, views of a file. linear: matrices are those of linear layers, not
    of transformers' Conv1D.
    """

    name: str
    arguments: dict[str, Any]
    tensors: Iterable[tuple[str, Tensor]]
    mapped: bool
    linear: bool = False
    query_factors: Sequence[float] = ()


def read_state_dict(path: Path, n_head: int | None = None) -> Weights:
    """The GPT-2 in a file that `torch.save` wrote; n_head: of a model whose file doesn't tell.

    Raises CheckpointError for a file that is damaged or holds no GPT-2, and UserError where n_head is missing.
    """
    content = load_tensors(path)
    arguments: dict[str, Any] = {}
    if isinstance(content, dict) and isinstance(content.get("model_args"), dict) and "model" in content:
        kind, state, arguments = "nanoGPT", content["model"], content["model_args"]
    elif isinstance(content, dict) and "state_dict" in content:
        kind, state = "a Lightning module", content["state_dict"]
        given = content.get("hyper_parameters")
        arguments = dict(given) if isinstance(given, dict) else {}
    else:
        kind, state = "a state_dict", content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no weights by name", WHERE, "Give a state_dict of a GPT-2.")
    named = {PREFIX.sub("", str(name)): tensor for name, tensor in state.items()}
    if not {"wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight"} <= named.keys():
        raise CheckpointError(f"{path} holds {kind}, but no GPT-2", WHERE, "Give the weights of a GPT-2.")
    beside = path.with_name("config.json")
    if not arguments and beside.is_file():
        config = read_json(beside)
        arguments = config.get("model", config) if isinstance(config.get("model", config), dict) else {}
    linear = named["h.0.attn.c_attn.weight"].shape[0] == 3 * named["wte.weight"].shape[1]
    head = named.get("lm_head.weight")
    tied = head is None or torch.equal(head, named["wte.weight"])
    if kind != "nanoGPT" and linear:
        kind = "nanoGPT" if tied else "minGPT"
    console.print(f"note: {path} is read as the weights of {kind}", markup=False)
    arguments = {
        **sizes_of(named, n_head or arguments.get("n_head"), path),
        "bias": "ln_f.bias" in named,
        "tie_embeddings": tied,
        "activation": "gelu" if kind == "nanoGPT" else "gelu_tanh",
        "dropout": arguments["dropout"] if isinstance(arguments.get("dropout"), float) else 0.0,
    }
    return Weights(str(path), arguments, [(str(name), tensor) for name, tensor in state.items()], False, linear)


def sizes_of(named: dict[str, Tensor], n_head: Any, path: Path) -> dict[str, Any]:
    """The sizes of a GPT by the shapes of its parameters. Raises UserError where n_head is missing or doesn't fit."""
    vocab_size, n_embd = named["wte.weight"].shape
    n_inner = max(named["h.0.mlp.c_fc.weight"].shape)
    if n_head is None and (n_head := HEADS.get(n_embd)) is None:
        what = f"{path} does not tell how many heads its {n_embd} units are divided into"
        raise UserError(what, "n_head", "Give n_head=, as the model was trained.")
    return {
        "vocab_size": vocab_size,
        "block_size": len(named["wpe.weight"]),
        "n_layer": len({name.split(".")[1] for name in named if name.startswith("h.")}),
        "n_head": n_head,
        "n_embd": n_embd,
        "n_inner": None if n_inner == 4 * n_embd else n_inner,
    }


def to_hf_name(name: str) -> str:
    """Hugging Face's name for one of our parameters: blocks.0.attn.qkv.weight is h.0.attn.c_attn.weight."""
    return ".".join(PARTS.get(part, part) for part in name.split("."))


def transpose_conv1d(name: str, weight: Tensor) -> Tensor:
    """The weight as transformers' Conv1D stores it: the matrices of linear layers transposed. name: ours."""
    return weight.T if name.endswith(("qkv.weight", "fc.weight", "proj.weight")) else weight


def read_weights(source: Weights, gpt: GPT, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The weights of a source under our names, each in memory of its own; `gpt` tells names and shapes.

    Raises CheckpointError that lists what is missing, unknown, misshapen, not finite, or stored twice and different.
    """

    def stored_as(name: str, weight: Tensor) -> Tensor:
        return weight if source.linear else transpose_conv1d(name, weight)

    likes = {to_hf_name(name): (name, stored_as(name, like).shape) for name, like in gpt.named_parameters()}
    head = "wte.weight" if gpt.config["tie_embeddings"] else "lm_head.weight"
    others = dict.fromkeys(("lm_head.weight", "lm_head.decoder.weight"), head)  # the second is DialoGPT's
    weights: dict[str, Tensor] = {}
    seen: dict[str, str] = {}  # our name to the one in the file
    problems, prefixes, more = list[str](), dict[str, None](), list[str]()
    for stored, tensor in source.tensors:
        theirs = PREFIX.sub("", stored)
        prefixes[stored.removesuffix(theirs).removesuffix("transformer.")] = None
        if MASK.fullmatch(theirs):
            continue
        name, shape = likes.get(others.get(theirs, theirs), ("", None))
        if shape is None and not theirs.startswith(PARTS_OF_GPT2) and "transformer." not in stored:
            more.append(stored)
            continue
        if shape is None:
            problems.append(f"{stored} is unknown")
        elif tensor.shape != shape or tensor.dtype not in DTYPES:
            problems.append(f"{stored} is {tensor.dtype} {list(tensor.shape)}, not {list(shape)}")
        elif name not in weights:
            taken = None if source.mapped else {other.data_ptr() for other in weights.values()}
            weights[name] = own(stored_as(name, tensor), dtype or tensor.dtype, taken)
            if not all(map(math.isfinite, weights[name].aminmax())):  # takes no memory, unlike isfinite
                problems.append(f"{stored} holds NaN or infinity")
        elif not torch.equal(weights[name], stored_as(name, tensor).to(weights[name].dtype)):
            problems.append(f"{seen[name]} and {stored} differ")
        seen[name] = stored
    problems += [f"{theirs} is missing" for theirs, (name, _) in likes.items() if name not in seen]
    if problems:
        rest = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        what = f"the weights of {source.name} are not those of its config.json: {'; '.join(problems[:3])}{rest}"
        raise CheckpointError(what, WHERE, FIX)
    if wrappers := [repr(prefix) for prefix in prefixes if prefix]:
        console.print(f"note: names of weights begin with {' and '.join(wrappers)}, which is left out", markup=False)
    if more:
        console.print(f"note: left out, as no part of the language model: {', '.join(sorted(more)[:5])}", markup=False)
    for layer, factor in enumerate(source.query_factors):
        if factor != 1:
            for kind in ("weight", "bias"):
                weights[f"blocks.{layer}.attn.qkv.{kind}"][: gpt.config["n_embd"]] *= factor
    return weights


def own(tensor: Tensor, dtype: torch.dtype, taken: set[int] | None) -> Tensor:
    """The tensor as a weight: itself if it can be one and has its memory to itself, else a copy.

    taken: the addresses of other weights; None for a view of a file.
    """
    alone = taken is not None and tensor.data_ptr() not in taken
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if alone and whole and tensor.dtype == dtype else torch.empty(tensor.shape, dtype=dtype).copy_(tensor)

"""The weights of a GPT-2 in files: their names and shapes in Hugging Face's layout, and ours.

Notable: what wraps a model in a program, such as DataParallel or torch.compile, is taken off the names, and heads
beside the language model's are left out; both are said. Whatever else a file holds is refused.

Source: transformers, `GPT2LMHeadModel`, whose names these are.
"""

import math
import re
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mingpt_lightning.console import console
from mingpt_lightning.errors import CheckpointError
from mingpt_lightning.gpt import GPT

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
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

NAME = re.compile(r"(?P<wrapper>([^.]+\.)*?)(transformer\.)?(?P<name>(wte|wpe|h\.\d+|ln_f|lm_head)\..+)")
"""A stored name: what the program that saved it has put before the GPT-2, and GPT-2's own name."""

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


def own_names(stored: Iterable[str]) -> dict[str, str]:
    """The names of a GPT-2's weights among the stored ones, to its own names for them."""
    return {name: found["name"] for name in stored if (found := NAME.fullmatch(name))}


def to_hf_name(name: str) -> str:
    """Hugging Face's name for one of our parameters: blocks.0.attn.qkv.weight is h.0.attn.c_attn.weight."""
    return ".".join(PARTS.get(part, part) for part in name.split("."))


def transpose_conv1d(name: str, weight: Tensor) -> Tensor:
    """The weight as transformers' Conv1D stores it: the matrices of linear layers transposed. name: ours."""
    return weight.T if name.endswith(("qkv.weight", "fc.weight", "proj.weight")) else weight


def read_weights(source: Weights, gpt: GPT, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The weights of a source under our names, each in memory of its own; `gpt` tells names and shapes.

    dtype: None for that of the file, if it is one for all. Raises CheckpointError that lists what is missing, unknown,
    misshapen, not finite, or stored twice and different.
    """

    def stored_as(name: str, weight: Tensor) -> Tensor:
        return weight if source.linear else transpose_conv1d(name, weight)

    likes = {to_hf_name(name): (name, stored_as(name, like).shape) for name, like in gpt.named_parameters()}
    head = "wte.weight" if gpt.config["tie_embeddings"] else "lm_head.weight"
    others = dict.fromkeys(("lm_head.weight", "lm_head.decoder.weight"), head)  # the second is DialoGPT's
    weights: dict[str, Tensor] = {}
    seen: dict[str, str] = {}  # our name to the one in the file
    problems, wrappers, more = list[str](), dict[str, None](), list[str]()
    for stored, tensor in source.tensors:
        found = NAME.fullmatch(stored)
        if found is None and "transformer." not in stored:
            more.append(stored)
            continue
        theirs = found["name"] if found else stored
        if MASK.fullmatch(theirs):
            continue
        if found and not theirs.startswith("lm_head"):  # which may be outside of what is wrapped
            wrappers[found["wrapper"]] = None
        name, shape = likes.get(others.get(theirs, theirs), ("", None))
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
    if len(wrappers) > 1:
        what = f"{source.name} holds several models, whose names begin with {' and '.join(map(repr, wrappers))}"
        raise CheckpointError(what, WHERE, "Save the state_dict of one of them.")
    if problems:
        rest = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        what = f"the weights of {source.name} are not those of a GPT-2 of its sizes: {'; '.join(problems[:3])}{rest}"
        raise CheckpointError(what, WHERE, FIX)
    if wrapper := "".join(wrappers):
        console.print(f"note: names of weights begin with {wrapper!r}, which is left out", markup=False)
    if more:
        rest = f" and {len(more) - 5} more" if len(more) > 5 else ""
        names = ", ".join(sorted(more)[:5])
        console.print(f"note: left out, as no part of the language model: {names}{rest}", markup=False)
    if dtype is None:
        kinds = {weight.dtype for weight in weights.values()}
        kinds |= {torch.float32} if any(factor != 1 for factor in source.query_factors) else set()  # it would round
        dtype = reduce(torch.promote_types, kinds)
        weights = {name: weight.to(dtype) for name, weight in weights.items()}
    for layer, factor in enumerate(source.query_factors):
        for name in (f"blocks.{layer}.attn.qkv.weight", f"blocks.{layer}.attn.qkv.bias"):
            if factor != 1 and name in weights:
                weights[name][: gpt.config["n_embd"]] *= factor
    return weights


def own(tensor: Tensor, dtype: torch.dtype, taken: set[int] | None) -> Tensor:
    """The tensor as a weight: itself if it can be one and has its memory to itself, else a copy.

    taken: the addresses of other weights; None for a view of a file.
    """
    alone = taken is not None and tensor.data_ptr() not in taken
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if alone and whole and tensor.dtype == dtype else torch.empty(tensor.shape, dtype=dtype).copy_(tensor)

"""A GPT-2 in a checkpoint file of another program: nanoGPT, minGPT, a Lightning module, or a bare state_dict.

Shapes tell all sizes but the number of heads. That, and what else no shape tells, comes from what the file says of its
model, from a config.json beside it, or from the caller. Nothing is assumed but the activation of the program that wrote
it, and this is said.

Sources: nanoGPT, `train.py` and `model.py`; minGPT, `mingpt/model.py`, as of 2020 and of 2022.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mingpt_lightning.console import console
from mingpt_lightning.errors import CheckpointError, UserError
from mingpt_lightning.hub import load_tensors, read_json, read_tensors
from mingpt_lightning.weights import own_names

WHERE, FIX = "name", "Give the weights of a GPT-2."

OURS = "mingpt_lightning"
"""The key that only this library's checkpoints have."""

STATES = ("model", "state_dict", "model_state_dict", "module")
"""Where programs keep a state_dict in a checkpoint."""

MODEL_ARGS = {"n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout"}
"""What a checkpoint of nanoGPT says of its model. Its forks say more, and may compute something else."""

MINGPT_HEADS = {
    **{"openai-gpt": 12, "gpt2": 12, "gpt2-medium": 16, "gpt2-large": 20, "gpt2-xl": 25},
    **{"gopher-44m": 16, "gpt-mini": 6, "gpt-micro": 4, "gpt-nano": 3},
}
"""The heads of minGPT's models, which its config.json gives by name."""

OLD_NAMES = {  # patterns in the names that minGPT had in 2020: what GPT-2 has there
    r"^tok_emb\.": "wte.",
    r"^pos_emb$": "wpe.weight",
    r"^blocks\.": "h.",
    r"\.ln([12])\.": r".ln_\1.",
    r"\.attn\.proj\.": ".attn.c_proj.",
    r"\.mlp\.0\.": ".mlp.c_fc.",
    r"\.mlp\.2\.": ".mlp.c_proj.",
    r"^head\.": "lm_head.",
}
ACTIVATION = {"transformers": "gelu_new", "minGPT": "gelu_new", "minGPT of 2020": "gelu", "nanoGPT": "gelu"}
"""The activation of each program, by transformers' name for it; nanoGPT's until May 2023 was gelu_new."""

MATRICES = ("wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight")
"""The weights whose shapes tell the sizes."""


class Foreign(NamedTuple):
    """A GPT-2 of another program: its settings as config.json would have them, its tensors, whether it has biases.

    linear: its matrices are those of linear layers, not of transformers' Conv1D.
    """

    config: dict[str, Any]
    tensors: list[tuple[str, Tensor]]
    bias: bool
    linear: bool


def read_foreign(path: Path, n_head: int | None = None, activation: str | None = None) -> Foreign:
    """The GPT-2 in a `.safetensors` file, or in one that `torch.save` wrote.

    n_head, activation: for a file that doesn't tell; the activation by transformers' name for it. Raises
    CheckpointError for a file that is damaged, holds no GPT-2 or one that computes something else, UserError where the
    number of heads isn't known.
    """
    content = dict(read_tensors(path)) if path.suffix == ".safetensors" else load_tensors(path)
    state, around = split(path, content)
    model_args = around.get("model_args")
    if isinstance(model_args, dict) and (more := [name for name in {*model_args} - MODEL_ARGS if model_args[name]]):
        what = f"{path} has {more[0]}={str(model_args[more[0]])[:60]} in its model_args, which nanoGPT hasn't"
        raise CheckpointError(what, WHERE, "Where it changes nothing that the model computes, remove it from the file.")
    old = any(name.endswith("tok_emb.weight") for name in state)
    state = modern(state) if old else state
    named = {name: state[stored] for stored, name in own_names(state).items()}
    if any(name not in named or named[name].dim() != 2 for name in MATRICES):
        what = f"{path} holds no GPT-2; its weights are {', '.join([*state][:3])}"
        raise CheckpointError(what, WHERE, FIX)
    sizes, head = sizes_of(named), named.get("lm_head.weight")
    linear = len(named["h.0.attn.c_attn.weight"]) != sizes["n_embd"]
    tied, bias = head is None or torch.equal(head, named["wte.weight"]), "ln_f.bias" in named
    program = "minGPT of 2020" if old else "transformers" if not linear else "nanoGPT" if tied else "minGPT"
    if isinstance(model_args, dict):
        program = "nanoGPT"
    settings = known_settings(path, around, sizes, {"n_head": n_head, "activation_function": activation})
    early = isinstance(model_args, dict) and "bias" not in model_args  # of the first weeks of 2023
    assumed = {"activation_function": "gelu_new" if early else ACTIVATION[program]}
    notes = [f"activation {value}" for name, value in assumed.items() if name not in settings]
    notes += [] if bias else ["LayerNorm without biases"]
    console.print(f"note: {path} is read as the weights of {', '.join([program, *notes])}", markup=False)
    dropout = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), settings.get("dropout", 0.0))
    fixed = {"model_type": "gpt2", "tie_word_embeddings": tied}
    return Foreign(dropout | assumed | settings | sizes | fixed, [*state.items()], bias, linear)


def split(path: Path, content: Any) -> tuple[dict[str, Tensor], dict[Any, Any]]:
    """The state_dict in the content of a file, and what else there is. Raises CheckpointError where there is none."""

    def is_state(node: Any) -> bool:
        tensors = isinstance(node, dict) and all(isinstance(value, Tensor) for value in node.values())
        return tensors and len(node) > 0 and all(isinstance(name, str) for name in node)

    if isinstance(content, dict) and OURS in content:
        fix = "Read it by LanguageModel.load_from_checkpoint, or as checkpoint=FILE."
        raise CheckpointError(f"{path} is a checkpoint of a run, not a pretrained model", WHERE, fix)
    if is_state(content):
        if "token_embedding.weight" in content:
            what = f"{path} is a state_dict of this library's GPT, which doesn't say how it is built"
            raise CheckpointError(what, WHERE, "Use gpt.save_pretrained(FOLDER) instead, or a checkpoint of a run.")
        return content, {}
    for name in STATES if isinstance(content, dict) else ():
        if is_state(content.get(name)):
            return content[name], {key: value for key, value in content.items() if key != name}
    raise CheckpointError(f"{path} holds no state_dict, of tensors by name", WHERE, FIX)


def find_settings(node: Any, depth: int = 3) -> Iterator[dict[str, Any]]:
    """The sections of plain data that say how many heads a model has, without what they leave open."""
    if isinstance(node, dict) and depth:
        if {"n_head", "num_attention_heads"} & node.keys():
            yield {str(name): value for name, value in node.items() if value is not None}
        for value in node.values():
            yield from find_settings(value, depth - 1)


def known_settings(path: Path, around: Any, sizes: dict[str, int], given: dict[str, Any]) -> dict[str, Any]:
    """What a file says of its model, or a config.json beside it, or the caller.

    Raises UserError where none says the number of heads or the caller contradicts the file, CheckpointError where the
    file contradicts its weights.
    """
    beside = path.with_name("config.json")
    settings = next(find_settings(around), {})
    source = path
    if not settings and beside.is_file():
        settings, source = next(find_settings(read_json(beside)), {}), beside
    heads = settings.get("num_attention_heads") or MINGPT_HEADS.get(str(settings.get("model_type")))
    if heads is not None:
        settings.setdefault("n_head", heads)
    for name, value in sizes.items():
        if name in ("n_layer", "n_embd") and settings.get(name, value) != value:
            what = f"{source} says {name}={str(settings[name])[:60]}, and {path} has weights of {name}={value}"
            raise CheckpointError(what, WHERE, "Put the file beside the config.json of its own, or of none.")
    for name, value in given.items():
        if value is not None and settings.setdefault(name, value) != value:
            what = f"{source} has {name}={str(settings[name])[:60]}, not {value}"
            raise UserError(what, name.removesuffix("_function"), "Leave it out.")
    if "n_head" not in settings:
        n_embd = sizes["n_embd"]
        like = f" GPT-2 has one for each 64: {n_embd // 64}." if n_embd % 64 == 0 else ""
        what = f"{path} does not say how many heads its attention of {n_embd} channels has"
        raise UserError(what, "n_head", f"Give n_head=NUMBER, as it was trained.{like}")
    return settings


def sizes_of(named: dict[str, Tensor]) -> dict[str, int]:
    """The sizes of a GPT-2, under config.json's names, by the shapes of its weights."""
    vocab_size, n_embd = named["wte.weight"].shape
    inner = named["h.0.mlp.c_fc.weight"].shape
    return {
        "vocab_size": vocab_size,
        "n_positions": len(named["wpe.weight"]),
        "n_layer": 1 + max(int(name.split(".")[1]) for name in named if name.startswith("h.")),
        "n_embd": n_embd,
        "n_inner": inner[1] if inner[0] == n_embd else inner[0],
    }


def modern(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict of minGPT of 2020 under GPT-2's names; queries, keys and values in one matrix."""
    wrapper = next(name for name in state if name.endswith("tok_emb.weight")).removesuffix("tok_emb.weight")
    renamed = {}
    for stored, tensor in state.items():
        name = stored.removeprefix(wrapper) if stored.startswith(wrapper) else stored
        for pattern, other in OLD_NAMES.items():
            name = re.sub(pattern, other, name)
        if not name.endswith("attn.mask"):
            renamed[name] = tensor[0] if name == "wpe.weight" and tensor.dim() == 3 else tensor
    for name in [name for name in renamed if ".attn.query." in name]:
        parts = [renamed.pop(name.replace(".query.", f".{part}."), None) for part in ("query", "key", "value")]
        if all(part is not None for part in parts):
            renamed[name.replace(".query.", ".c_attn.")] = torch.cat([part for part in parts if part is not None])
    return renamed

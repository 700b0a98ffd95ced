"""Loading in Hugging Face's layout: a folder or hub id into a GPT. `saving` is the way back.

Notable: no transformers model is built, so loading takes little more memory than the weights. Whatever our GPT would
compute differently is refused, and so is a tensor that is missing, unknown, misshapen or not finite; of heads beside
the language model's, and of wrappers' names, a note is printed. This module knows nothing of training or transformers.

Source: transformers, `GPT2Config` and `GPT2LMHeadModel`, whose names and defaults these are.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mingpt_lightning import imagegpt, llama, openai_gpt
from mingpt_lightning.errors import CheckpointError, UserError, check_gpt_sizes
from mingpt_lightning.foreign import read_foreign
from mingpt_lightning.gguf_file import is_gguf, open_gguf
from mingpt_lightning.gpt import GPT
from mingpt_lightning.hub import Repository, read_json, read_tensors
from mingpt_lightning.layers import RotaryPositions
from mingpt_lightning.structure import without_memory
from mingpt_lightning.weights import DTYPES, Weights, read_weights

SIZES = {  # ours: theirs, their other name for it, their default
    "vocab_size": ("vocab_size", "", 50257),
    "block_size": ("n_positions", "max_position_embeddings", 1024),
    "n_layer": ("n_layer", "num_hidden_layers", 12),
    "n_head": ("n_head", "num_attention_heads", 12),
    "n_embd": ("n_embd", "hidden_size", 768),
    "n_inner": ("n_inner", "", None),
}
DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
ACTIVATIONS = {  # theirs: ours; of several for one of ours, the first is what we write
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu_squared",
    "silu": "silu",
    "swish": "silu",
}
ONLY = {  # the one value of a setting that our GPT computes
    "model_type": "gpt2",
    "add_cross_attention": False,
    "quantization_config": None,
}
SWITCHES = {  # settings that our GPT computes either way: scales by other queries, precision by float32
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "tie_word_embeddings": True,
}
Tensors = Iterable[tuple[str, torch.Tensor]]
"""Weights by their stored names."""

WHERE, FIX = "name", "Choose a GPT-2 language model in Hugging Face's layout."


def from_pretrained(
    name: str | Path,
    revision: str | None = None,
    *,
    vocab_size: int | None = None,
    block_size: int | None = None,
    dropout: float | Sequence[float] | None = None,
    n_head: int | None = None,
    activation: str | None = None,
    dtype: torch.dtype | None = torch.float32,
) -> GPT:
    """A GPT with the weights of a GPT-2, GPT-1, ImageGPT or a relative of Llama's (see `llama`), in evaluation mode.

    name: a folder in Hugging Face's layout, a hub id, a GGUF file, or a file of weights alone, such as a checkpoint of
    nanoGPT or minGPT; see `read_foreign`. revision: a branch, tag or commit on the hub.
    vocab_size: more tokens than it has; see `GPT.grow_vocabulary`. block_size: fewer positions than it has.
    dropout: instead of what its config says. n_head, activation: for a file that doesn't say them. dtype: of the
    weights; None: as stored, but float32 where a setting is folded into half-precision weights.

    Raises CheckpointError, naming file and key or tensor, for files that are missing, damaged, or not a GPT-2 that our
    GPT computes exactly; ResourceError when the hub cannot be reached; UserError for a change that cannot be made.
    """
    source = open_weights(name, revision, n_head, activation)
    arguments = source.arguments
    tokens = arguments["vocab_size"]
    if vocab_size is not None and vocab_size < tokens:
        fix = f"Tokenize the data with the model's own tokenizer: tokenizer={name}."
        raise UserError(f"{name} has {tokens} tokens and the data has {vocab_size}", "vocab_size", fix)
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype={dtype} cannot hold weights", "dtype", "Use torch.float32 or torch.bfloat16.")
    gpt = without_memory(arguments if dropout is None else arguments | {"dropout": dropout})
    weights = read_weights(source, gpt, dtype)
    tied = {"head.weight": weights["token_embedding.weight"]} if arguments["tie_embeddings"] else {}
    gpt.load_state_dict(weights | tied, assign=True)
    if tied:
        gpt.head.weight = gpt.token_embedding.weight  # which assigning has separated
    for module in gpt.modules():
        if isinstance(module, RotaryPositions):
            module.reset_buffers()  # which no file holds
    if block_size is not None and block_size != gpt.block_size:
        gpt.crop_block_size(block_size)
    if vocab_size is not None and vocab_size != tokens:
        gpt.grow_vocabulary(vocab_size)
    return gpt.eval()


class Kind(NamedTuple):
    """How the files of an architecture are read.

    arguments: config.json and where it is -> the constructor arguments of GPT, and factors of each layer's queries.
    rename: weights, and where they are -> the same under the names of GPT-2's. linear: as for `Weights`.
    """

    arguments: Callable[[dict[str, Any], Path], tuple[dict[str, Any], Sequence[float]]]
    rename: Callable[[Tensors, str], Tensors] = lambda tensors, name: tensors
    linear: bool = False


def open_weights(name: str | Path, revision: str | None, n_head: int | None, activation: str | None) -> Weights:
    """The weights of a hub id, a folder or a file."""
    path = Path(name).expanduser()
    if path.is_file() and revision is not None:
        raise UserError(f"revision={revision} of a file", "revision", "It is for hub ids; leave it out.")
    if path.is_file() and not is_gguf(path):
        theirs = None if activation is None else hf_activation(activation)
        found = read_foreign(path, n_head, theirs)
        arguments, factors = KINDS["gpt2"].arguments(found.config, path)
        mapped = path.suffix == ".safetensors"
        return Weights(str(path), arguments | {"bias": found.bias}, found.tensors, mapped, found.linear, factors)
    repository = None if path.is_file() else Repository(name, revision)
    file = path if repository is None else repository.require("config.json")
    config = open_gguf(path).config() if repository is None else read_json(file)
    kind = KINDS.get(str(config.get("model_type")), KINDS["gpt2"])
    arguments, factors = kind.arguments(config, file)
    for key, value in (("n_head", n_head), ("activation", activation)):
        if value not in (None, arguments[key]):
            raise UserError(f"{file} has {key}={arguments[key]}, not {value}", key, "Leave it out.")
    if repository is None:
        return Weights(str(path), arguments, kind.rename(open_gguf(path).tensors(), str(path)), False, True, factors)
    files = repository.weight_files()
    tensors = kind.rename((pair for file in files for pair in read_tensors(file)), repository.name)
    return Weights(repository.name, arguments, tensors, files[0].suffix == ".safetensors", kind.linear, factors)


def hf_activation(activation: str) -> str:
    """transformers' name for one of our activations. Raises UserError where it has none."""
    names = [name for name, ours in ACTIVATIONS.items() if ours == activation]
    if not names:
        known = f"It has: {', '.join(sorted(set(ACTIVATIONS.values())))}."
        raise UserError(f"transformers has no activation={activation}", "activation", known)
    return names[0]


def gpt_arguments(config: dict[str, Any], path: Path) -> tuple[dict[str, Any], list[float]]:
    """What a config.json means for the constructor of GPT, and for the queries of each layer; path: where it is.

    Raises CheckpointError for what that cannot express.
    """

    def take(key: str, default: Any, usable: Callable[[Any], bool], rule: str, alias: str = "") -> Any:
        values = [config[name] for name in (key, alias) if name in config] or [default]
        for value in values:
            if value != values[0] or not (value is default or usable(value)):
                raise CheckpointError(f"{path} has {key}={str(value)[:60]}, and this GPT takes {rule}", WHERE, FIX)
        return values[0]

    def is_size(value: Any) -> bool:
        return type(value) is int and 0 < value < 2**24  # a bool is no size

    def is_rate(value: Any) -> bool:
        return type(value) in (int, float) and 0 <= value < 1

    for key, value in ONLY.items():
        take(key, value, [value].__contains__, ", ".join(KINDS) if key == "model_type" else f"{key}={value} only")
    is_switch = [True, False].__contains__
    switches = {key: take(key, value, is_switch, "true or false") for key, value in SWITCHES.items()}
    size, rate, known = "one positive integer", "a number in [0, 1)", f"one of {', '.join(ACTIVATIONS)}"
    sizes = {ours: take(key, default, is_size, size, alias) for ours, (key, alias, default) in SIZES.items()}
    dropout = [take(key, 0.1, is_rate, rate) for key in DROPOUTS]
    activation = take("activation_function", "gelu_new", [*ACTIVATIONS].__contains__, known)
    try:
        check_gpt_sizes(sizes["n_layer"], sizes["n_head"], sizes["n_embd"])
    except UserError as error:
        raise CheckpointError(f"{path}: {error.what}", WHERE, FIX) from error
    arguments = {
        **sizes,
        "dropout": dropout if len(set(dropout)) > 1 else dropout[0],
        "activation": ACTIVATIONS[activation],
        "norm_eps": take("layer_norm_epsilon", 1e-5, is_rate, rate),
        "tie_embeddings": switches["tie_word_embeddings"],
    }
    unscaled = 1.0 if switches["scale_attn_weights"] else math.sqrt(sizes["n_embd"] / sizes["n_head"])
    by_layer = switches["scale_attn_by_inverse_layer_idx"]
    return arguments, [unscaled / (layer + 1 if by_layer else 1) for layer in range(sizes["n_layer"])]


def openai_arguments(config: dict[str, Any], path: Path) -> tuple[dict[str, Any], list[float]]:
    """The same for a GPT-1."""
    arguments, factors = gpt_arguments(openai_gpt.as_gpt2(config, path), path)
    return arguments | {"norm_order": "post"}, factors


def image_arguments(config: dict[str, Any], path: Path) -> tuple[dict[str, Any], list[float]]:
    """The same for an ImageGPT."""
    arguments, factors = gpt_arguments(imagegpt.as_gpt2(config, path), path)
    return arguments | imagegpt.OURS | {"n_output": arguments["vocab_size"] - 1}, factors


KINDS = {
    "gpt2": Kind(gpt_arguments),
    "imagegpt": Kind(image_arguments),
    "openai-gpt": Kind(openai_arguments, openai_gpt.under_gpt2_names),
    **dict.fromkeys(llama.ARCHITECTURES, Kind(llama.llama_arguments, llama.under_gpt2_names, linear=True)),
}
"""What is read, by model_type."""

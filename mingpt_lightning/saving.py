"""Saving in Hugging Face's layout: a GPT into a folder that transformers and `pretrained` load.

Notable: whatever transformers would compute differently is refused before a file is written.

Source: transformers, `GPT2Config` and `GPT2LMHeadModel`, whose names these are.
"""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mingpt_lightning import imagegpt, llama, openai_gpt
from mingpt_lightning.adapter import adapter_of, merge_adapter
from mingpt_lightning.architectures import CONV1D, architecture_of
from mingpt_lightning.card import Facts, model_card
from mingpt_lightning.errors import UserError
from mingpt_lightning.gpt import GPT
from mingpt_lightning.hub import write_file
from mingpt_lightning.pretrained import DROPOUTS, ONLY, SIZES, SWITCHES, hf_activation
from mingpt_lightning.structure import without_memory
from mingpt_lightning.tokenizer_files import SPECIAL
from mingpt_lightning.weights import to_hf_name, transpose_conv1d

if TYPE_CHECKING:
    from mingpt_lightning.tokenizer import Tokenizer


def save_pretrained(gpt: GPT, folder: str | Path, tokenizer: "Tokenizer | None" = None, **facts: Any) -> None:
    """Write a folder that `from_pretrained` and transformers load; with a tokenizer, one for AutoTokenizer too.

    Each file is written atomically, config.json last. An existing README.md is kept; a new one is a model card with
    these facts. generation_config.json ends a text at the last position, beyond which transformers fails.
    Raises ResourceError when the folder cannot be written, UserError for a model that it lacks.
    """
    folder, ours = Path(folder), gpt.config
    kind = architecture_of(gpt)
    if adapter_of(gpt) is not None:
        gpt = merge_adapter(copy.deepcopy(gpt))
    sizes = gpt2_config(kind, ours) if kind in CONV1D else llama.llama_config(kind, ours)
    weights = hf_weights(gpt, kind)
    backend = tokenizer.hugging_face() if tokenizer else None
    special: dict[str, Any] = getattr(tokenizer, "special_tokens", {})
    ends = special_numbers(tokenizer if backend is not None else None)
    if not (folder / "README.md").exists():
        given = tokenizer if backend is not None else None
        card = model_card(ours | {"kind": kind}, gpt.n_parameters, given, Facts(**facts))
        write_file(folder / "README.md", card)
    write_file(folder / "generation_config.json", ends | {"max_length": ours["block_size"]})
    if backend is not None:
        options = {"model_max_length": ours["block_size"], "padding_side": "left"}
        options |= {"clean_up_tokenization_spaces": False, **special_texts(backend, special)}
        write_file(folder / "tokenizer.json", backend.to_str(pretty=True))
        if template := getattr(tokenizer, "chat_template", None):
            options["chat_template"] = template
        write_file(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **options})
    if kind == "imagegpt" and tokenizer is not None and tokenizer.picture is not None:
        imagegpt.write_palette(folder, tokenizer.arguments["palette"], tokenizer.picture)
    write_file(folder / "model.safetensors", weights)
    dtype = str(gpt.head.weight.dtype).removeprefix("torch.")
    write_file(folder / "config.json", {**sizes, **ends, "dtype": dtype})


def gpt2_config(kind: str, ours: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a GPT-2, GPT-1 or ImageGPT of these constructor arguments."""
    dropout = ours["dropout"] if isinstance(ours["dropout"], Sequence) else [ours["dropout"]] * 3
    config = {
        "architectures": [CONV1D[kind]],
        **{key: value for key, value in (ONLY | SWITCHES).items() if value is not None},
        "model_type": kind,
        "tie_word_embeddings": ours["tie_embeddings"],
        **{key: ours[name] for name, (key, _, _) in SIZES.items()},
        "n_ctx": ours["block_size"],  # transformers has forgotten it, llama.cpp's converter asks for it
        **dict(zip(DROPOUTS, dropout, strict=True)),
        "activation_function": hf_activation(ours["activation"]),
        "layer_norm_epsilon": ours["norm_eps"],
    }
    return openai_gpt.from_gpt2(config) if kind == "openai-gpt" else config


def hf_weights(gpt: GPT, kind: str) -> dict[str, torch.Tensor]:
    """The weights as transformers stores them. Those of a GPT-2 without biases get biases of zero, which is the same.

    Raises UserError for one that is not finite, which nobody could load.
    """
    ours = dict(gpt.named_parameters())
    likes = without_memory(gpt.config | ({"bias": True} if kind in CONV1D else {})).named_parameters()
    dtype, named = gpt.head.weight.dtype, {}
    for name, like in likes:
        weight = ours[name].detach() if name in ours else torch.zeros(like.shape, dtype=dtype)
        if not all(map(math.isfinite, weight.aminmax())):
            fix = "float16 ends at 65,504: choose float32 or bfloat16." if dtype == torch.float16 else "Train it anew."
            raise UserError(f"{name} holds NaN or infinity in {str(dtype).removeprefix('torch.')}", "dtype", fix)
        named[to_hf_name(name)] = transpose_conv1d(name, weight) if kind in CONV1D else weight
    if kind not in CONV1D:
        return {name: weight.contiguous() for name, weight in llama.under_llama_names(named.items(), gpt.config)}
    if kind == "openai-gpt":
        named = dict(openai_gpt.from_gpt2_names(named.items()))
    prefixes = {name: "" if name.startswith("lm_head") else "transformer." for name in named}
    return {prefixes[name] + name: weight.contiguous() for name, weight in named.items()}


def special_texts(backend: Any, special_tokens: dict[str, Any]) -> dict[str, Any]:
    """The special tokens as tokenizer_config.json has them; the end also stands for padding and for the unknown."""
    texts, end = {}, special_tokens.get("eos_token_id")
    for role in SPECIAL:
        given = special_tokens.get(f"{role}_token_id", end if role in ("pad", "unk") else None)
        number = given[0] if isinstance(given, list) else given
        texts[f"{role}_token"] = None if number is None else backend.id_to_token(number)
    added = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
    more = [text for text in added if text not in texts.values()]
    return texts | ({"additional_special_tokens": more} if more else {})


def special_numbers(tokenizer: "Tokenizer | None") -> dict[str, Any]:
    """The ids of special tokens as config.json has them; the end of a text also stands for padding."""
    special: dict[str, Any] = getattr(tokenizer, "special_tokens", {})
    given = {name: ids for name, ids in special.items() if name != "unk_token_id"}
    begin, end = tokenizer.start_token if tokenizer else None, special.get("eos_token_id")
    pad = end[0] if isinstance(end, list) else end
    return {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": pad, **given}

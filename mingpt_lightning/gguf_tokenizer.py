"""The tokenizer in a GGUF file: what its folder had as tokenizer.json, the ids of special tokens, the chat template.

Notable: a GGUF names how text is split before merges, and doesn't hold the pattern; the names that are known are in
SPLITS. A SentencePiece vocabulary is converted by transformers.

Source: llama.cpp, `llama-vocab.cpp`; the patterns are those in the tokenizer.json of each model.
"""

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mingpt_lightning.errors import CheckpointError
from mingpt_lightning.gguf_file import GGUFFile, open_gguf
from mingpt_lightning.tokenizer_files import TokenizerFiles, add_before, byte_level

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

WHERE = "tokenizer"

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SPLITS: dict[str, str | None] = {  # None: as GPT-2; digits: each by itself, else as GPT-2
    "gpt-2": None,
    "smollm": "digits",
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "llama-bpe": LLAMA3,
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
}
"""How text is split before merges, by tokenizer.ggml.pre."""

IDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""Special tokens by what they are for: GGUF's names."""

CONTROL, USER_DEFINED = 3, 4
"""Types of tokens that aren't made by merges: those that mean something, and those that are text."""


def gguf_tokenizer(path: str | Path) -> TokenizerFiles:
    """The tokenizer in a GGUF file. Raises CheckpointError for one of another kind."""
    file = open_gguf(path)
    own = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in file.metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    if own.get("model") not in ("gpt2", "llama") or not isinstance(own.get("tokens"), list):
        what = f"{file.path} has tokenizer.ggml.model={str(own.get('model'))[:60]}, of which gpt2 and llama are read"
        raise CheckpointError(what, WHERE, "Name the folder or hub id of the model's tokenizer.")
    backend = merging(file, own) if own["model"] == "gpt2" else sentencepiece(file)
    size = len(own["tokens"])
    special: dict[str, Any] = {
        f"{role}_token_id": own[f"{name}_token_id"]
        for role, name in IDS.items()
        if 0 <= own.get(f"{name}_token_id", -1) < size
    }
    ends = [own[f"{name}_token_id"] for name in ("eos", "eot") if 0 <= own.get(f"{name}_token_id", -1) < size]
    if len({*ends}) > 1:  # such as the end of a text and that of an answer
        special["eos_token_id"] = ends
    begins = own.get("add_bos_token", own["model"] == "llama" or SPLITS.get(str(own.get("pre"))) == LLAMA3)
    if begins and "bos_token_id" in special:
        add_before(backend, special["bos_token_id"])
    template = file.metadata.get("tokenizer.chat_template")
    return TokenizerFiles(backend.to_str(), special, template if isinstance(template, str) else None)


def merging(file: GGUFFile, own: dict[str, Any]) -> "Backend":
    """The backend of byte-level BPE. Raises CheckpointError for an unknown way to split text, and for wrong merges."""
    from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

    split = own.get("pre", "gpt-2" if file.architecture == "gpt2" else "default")
    if split not in SPLITS:
        what = f"{file.path} has tokenizer.ggml.pre={str(split)[:60]}, of which {', '.join(SPLITS)} are known"
        raise CheckpointError(what, WHERE, "Name the folder or hub id of the model's tokenizer.")
    known = {token: number for number, token in enumerate(own["tokens"])}
    try:
        merges = [tuple(merge.split(" ")) for merge in own["merges"]]
        backend = byte_level(models.BPE(known, merges, ignore_merges=SPLITS[split] == LLAMA3))
    except Exception as error:  # tokenizers raises nothing more special
        what = f"{file.path} has a damaged vocabulary: {' '.join(str(error).split())[:200]}"
        raise CheckpointError(what, WHERE, "Download it again.") from error
    if SPLITS[split] == "digits":
        whole = backend.pre_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    elif pattern := SPLITS[split]:
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), plain])
    if SPLITS[split] == QWEN2:
        backend.normalizer = normalizers.NFC()
    for token, kind in zip(own["tokens"], own.get("token_type", []), strict=False):
        if kind == CONTROL:
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == USER_DEFINED:
            backend.add_tokens([AddedToken(token, normalized=False)])
    return backend


def sentencepiece(file: GGUFFile) -> "Backend":
    """The backend of a SentencePiece vocabulary, as transformers converts it."""
    from transformers import AutoTokenizer
    from transformers.utils import logging as their_logging

    level = their_logging.get_verbosity()
    their_logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = AutoTokenizer.from_pretrained(file.path.parent, gguf_file=file.path.name)
        backend: Backend = tokenizer.backend_tokenizer
    except Exception as error:  # whatever it has against the file
        what = f"transformers cannot convert the vocabulary of {file.path}: {' '.join(str(error).split())[:200]}"
        raise CheckpointError(what, WHERE, "Name the folder or hub id of the model's tokenizer.") from error
    finally:
        their_logging.set_verbosity(level)
    return backend

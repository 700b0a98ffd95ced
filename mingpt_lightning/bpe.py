"""What `BPETokenizer` is made of: tokenizer.json files, training, and GPT-2's way to write bytes.

The work is done by the `tokenizers` library; a "backend" here is a tokenizer of it.
"""

import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mingpt_lightning.errors import CheckpointError, UserError
from mingpt_lightning.hub import Repository
from mingpt_lightning.text import unicode

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

END_OF_TEXT = "<|endoftext|>"

PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = {byte: byte for byte in PRINTABLE} | dict(enumerate(sorted({*range(256)} - {*PRINTABLE}), 256))
"""The bytes behind the characters in which GPT-2 writes its vocabulary: "Ġ" (U+0120) is a space."""

PROBE = "".join(map(chr, [*range(0x800), *range(0x800, 0xD800, 999), *range(0xE000, 0x110000, 999)])) + "  e\u0301 \n\n"
"""Every byte that UTF-8 has, spaces in a row, and what a normaliser would change."""


def read_json(name: str | Path, revision: str | None = None) -> str:
    """The tokenizer.json of a hub id, a folder or a file, made from vocabulary and merges where there is none.

    Raises CheckpointError when it is missing or damaged, and what `Repository` raises.
    """
    from tokenizers import models

    if Path(name).expanduser().is_file() and revision is None:
        files = [Path(name).expanduser()]
    else:
        repository = Repository(name, revision)
        files = [repository.require("tokenizer.json", "vocab.json", "encoder.json")]
        if files[0].name != "tokenizer.json":
            files.append(repository.require("merges.txt", "vocab.bpe"))
    try:
        if len(files) == 2:
            return byte_level(models.BPE.from_file(*map(str, files))).to_str()
        return files[0].read_text(encoding="utf-8")
    except Exception as error:  # tokenizers raises nothing more special
        raise CheckpointError(f"{files[0]} cannot be read: {error}", "tokenizer", "Fetch it again.") from error


def load(content: str) -> "Backend":
    """The backend of a tokenizer.json, which neither cuts nor pads. Raises UserError for anything else."""
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_str(unicode(content, "tokenizer"))
    except Exception as error:  # tokenizers raises nothing more special
        raise UserError(f"not a tokenizer.json: {error}", "tokenizer", "Give one that tokenizers wrote.") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def byte_level(model: Any) -> "Backend":
    """A model of merges between GPT-2's pieces of text and its bytes."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def is_byte_level(content: str) -> bool:
    """Whether a tokenizer.json is byte-level BPE that gives the same tokens each time, and takes no space away."""
    parts = json.loads(content)
    steps = (parts["pre_tokenizer"] or {}).get("pretokenizers", [parts["pre_tokenizer"] or {}])
    return (
        parts["model"]["type"] == "BPE"
        and not parts["model"]["dropout"]
        and any(step.get("type") == "ByteLevel" for step in steps)
        and not any(token["lstrip"] or token["rstrip"] for token in parts["added_tokens"])
    )


def train(texts: Iterable[str], vocab_size: int) -> "Backend":
    """256 bytes, the merges that help these texts most, and `<|endoftext|>` as the last id."""
    from tokenizers import models, pre_tokenizers, trainers

    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or vocab_size < 257:
        raise UserError(f"vocab_size={vocab_size} is too small", "vocab_size", "Use 257, for all bytes, or more.")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False)
    backend = byte_level(models.BPE())
    backend.train_from_iterator((unicode(text, "text") for text in texts), trainer)
    backend.add_special_tokens([END_OF_TEXT])
    return backend


def token_bytes(backend: "Backend") -> list[bytes]:
    """The bytes of each token; those of an added token are its name, those of an id without token none."""
    added, vocabulary = backend.get_added_tokens_decoder(), backend.get_vocab()
    tokens = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for text, token in vocabulary.items():
        try:
            tokens[token] = text.encode() if token in added else text.translate(BYTES).encode("latin-1")
        except UnicodeEncodeError:  # no merge of bytes makes this one
            tokens[token] = text.encode()
    return tokens


def table(backend: "Backend", known: list[bytes], text: str) -> str:
    """A row for each piece of a text: its bytes, the tokens that the merges make of them, their ids."""
    from rich.cells import cell_len

    encoding = backend.encode(text, add_special_tokens=False)
    rows = [("piece", "bytes", "tokens", "ids")]
    for _, group in groupby(zip(encoding.word_ids, encoding.tokens, encoding.ids, strict=True), lambda row: row[0]):
        _, tokens, ids = zip(*group, strict=True)
        piece = b"".join(known[token] for token in ids)
        rows.append((repr(piece.decode()), piece.hex(" "), "·".join(tokens), " ".join(map(str, ids))))
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    padded = ([cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "".join("  ".join(row).rstrip() + "\n" for row in padded)

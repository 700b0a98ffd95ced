"""Byte-level BPE, as in GPT-2, from Hugging Face's or OpenAI's files or trained on a text.

The merges are computed by the `tokenizers` library, which also writes tokenizer.json; a "backend" here is one of its
tokenizers.
"""

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mingpt_lightning.errors import CheckpointError, UserError
from mingpt_lightning.hub import Repository
from mingpt_lightning.text import unicode
from mingpt_lightning.tokenizer import CharTokenizer, Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

END_OF_TEXT = "<|endoftext|>"

PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = {byte: byte for byte in PRINTABLE} | dict(enumerate(sorted({*range(256)} - {*PRINTABLE}), 256))
"""The byte behind each character in which GPT-2 writes its vocabulary: "Ġ" (U+0120) is a space."""

PROBE = "".join(map(chr, [*range(0x800), *range(0x800, 0xD800, 999), *range(0xE000, 0x110000, 999)])) + "  e\u0301 \n\n"
"""A text with every byte of UTF-8, repeated spaces, and what a normaliser would change."""


class BPETokenizer(Tokenizer):
    """Byte-level BPE: frequent byte strings are tokens, and any text can be encoded.

    tokenizer: the content of a tokenizer.json. `<|endoftext|>` in a text is one token, where the vocabulary has it
    (end_of_text; None where it hasn't). Ids beyond the vocabulary, which padded models have, decode to nothing.

    Raises UserError for any other kind of tokenizer, and for one that doesn't reproduce every text exactly.
    Source: Radford et al. 2019, section 2.2; Sennrich et al. 2016.
    """

    name = "bpe"
    unit = "byte"

    def __init__(self, tokenizer: str):
        self.backend = load_backend(tokenizer)
        self.end_of_text: int | None = self.backend.token_to_id(END_OF_TEXT)
        if self.end_of_text is not None:
            self.backend.add_special_tokens([END_OF_TEXT])  # which vocab.json doesn't say
            self.start_token, self.stop_tokens = self.end_of_text, (self.end_of_text,)
        super().__init__(tokenizer=self.backend.to_str())
        if not is_byte_level(self.arguments["tokenizer"]) or self.decode(self.encode(PROBE)) != PROBE:
            what = "this tokenizer is not byte-level BPE, or doesn't reproduce every text exactly"
            raise UserError(what, "tokenizer", "Use one like GPT-2's: no normaliser, no added spaces.")

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> "BPETokenizer":
        """The tokenizer of a hub id, a folder or a tokenizer.json; also of OpenAI's encoder.json and vocab.bpe."""
        return cls(read_tokenizer_json(name, revision))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """A vocabulary of 256 bytes, the merges that compress these texts most, and `<|endoftext|>` as the last id.

        The same texts give the same tokenizer; short ones may offer fewer merges than `vocab_size` has room for.
        Raises UserError when vocab_size is less than 257.
        """
        from tokenizers import models, pre_tokenizers, trainers

        if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or vocab_size < 257:
            raise UserError(f"vocab_size={vocab_size} is too small", "vocab_size", "Use 257, for all bytes, or more.")
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False)
        backend = byte_level(models.BPE())
        backend.train_from_iterator((unicode(text, "text") for text in texts), trainer)
        backend.add_special_tokens([END_OF_TEXT])
        return cls(backend.to_str())

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of each token; those of an added token are its name, those of an unused id none."""
        added, vocabulary = self.backend.get_added_tokens_decoder(), self.backend.get_vocab()
        tokens = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for text, token in vocabulary.items():
            try:
                tokens[token] = text.encode() if token in added else text.translate(BYTES).encode("latin-1")
            except UnicodeEncodeError:  # no merge of bytes makes this one
                tokens[token] = text.encode()
        return tokens

    @cached_property
    def byte_lengths(self) -> np.ndarray:  # type: ignore[override]
        """How many bytes of text each token stands for, (vocab_size,) int64; 0 for special tokens."""
        lengths = np.array([len(text) for text in self.token_bytes])
        lengths[[token for token, added in self.backend.get_added_tokens_decoder().items() if added.special]] = 0
        return lengths

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(unicode(text, "prompt"), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of many texts, on all cores: a uint32 array for each."""
        encodings = self.backend.encode_batch_fast([unicode(text, "text") for text in texts], add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, tokens: Sequence[int]) -> str:
        known = self.token_bytes
        return b"".join([known[token] for token in tokens if token < len(known)]).decode("utf-8", "replace")

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            if token < self.vocab_size and (text := decoder.decode(self.token_bytes[token])):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    def hugging_face(self) -> "Backend":
        return load_backend(self.arguments["tokenizer"])

    def show(self, text: str) -> str:
        """How a text is tokenised, as a table: its pre-tokens, their bytes, the tokens that they are merged into, ids.

        No merge crosses the border of a pre-token. Tokens are written as in the vocabulary, where "Ġ" is a space.
        """
        from rich.cells import cell_len

        encoding = self.backend.encode(unicode(text, "text"), add_special_tokens=False)
        rows = [("piece", "bytes", "tokens", "ids")]
        for _, group in groupby(zip(encoding.word_ids, encoding.tokens, encoding.ids, strict=True), lambda row: row[0]):
            _, tokens, ids = zip(*group, strict=True)
            piece = b"".join(self.token_bytes[token] for token in ids)
            rows.append((repr(piece.decode()), piece.hex(" "), "·".join(tokens), " ".join(map(str, ids))))
        widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
        padded = (
            [cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)] for row in rows
        )
        return "".join("  ".join(row).rstrip() + "\n" for row in padded)


def read_tokenizer(name: str | Path, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a hub id, a folder or a tokenizer.json: BPE, or what `CharTokenizer.save` wrote."""
    content = read_tokenizer_json(name, revision)
    parts = json.loads(load_backend(content).to_str())
    if parts["model"]["type"] != "WordLevel":
        return BPETokenizer(content)
    vocabulary, unknown = parts["model"]["vocab"], parts["model"]["unk_token"]
    on_unknown = "skip" if parts["normalizer"] else unknown if unknown in vocabulary else "error"
    tokenizer = CharTokenizer("".join(vocabulary), on_unknown)
    if tokenizer.hugging_face().get_vocab() != vocabulary:
        raise UserError(f"the words of {name} are not characters", "tokenizer", "Use byte-level BPE.")
    return tokenizer


def read_tokenizer_json(name: str | Path, revision: str | None = None) -> str:
    """The tokenizer.json of a hub id, a folder or a file, built from vocabulary and merges where there is none.

    Raises CheckpointError when it is missing or damaged, and what `Repository` raises.
    """
    from tokenizers import models

    if Path(name).expanduser().is_file() and revision is None:
        files = [Path(name).expanduser()]
    else:
        repository = Repository(name, revision, "tokenizer")
        files = [repository.require("tokenizer.json", "vocab.json", "encoder.json")]
        if files[0].name != "tokenizer.json":
            files.append(repository.require("merges.txt", "vocab.bpe"))
    try:
        if len(files) == 2:
            return byte_level(models.BPE.from_file(*map(str, files))).to_str()
        return files[0].read_text(encoding="utf-8")
    except Exception as error:  # tokenizers raises nothing more special
        raise CheckpointError(f"{files[0]} cannot be read: {error}", "tokenizer", "Download it again.") from error


def load_backend(content: str) -> "Backend":
    """The backend of a tokenizer.json, without truncation and padding. Raises UserError for anything else."""
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_str(unicode(content, "tokenizer"))
    except Exception as error:  # tokenizers raises nothing more special
        raise UserError(f"not a tokenizer.json: {error}", "tokenizer", "Give one that tokenizers wrote.") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def byte_level(model: Any) -> "Backend":
    """A backend that applies a model's merges to the UTF-8 bytes of GPT-2's pre-tokens."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def is_byte_level(content: str) -> bool:
    """Whether a tokenizer.json is byte-level BPE that is deterministic and strips no spaces."""
    parts = json.loads(content)
    steps = (parts["pre_tokenizer"] or {}).get("pretokenizers", [parts["pre_tokenizer"] or {}])
    return (
        parts["model"]["type"] == "BPE"
        and not parts["model"]["dropout"]
        and any(step.get("type") == "ByteLevel" for step in steps)
        and not any(token["lstrip"] or token["rstrip"] for token in parts["added_tokens"])
    )

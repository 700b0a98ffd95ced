"""Tokenizers of the `tokenizers` library: byte-level BPE as in GPT-2, also trained on a text, and any other kind.

A "backend" here is one of the library's own tokenizers.
"""

import codecs
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mingpt_lightning.errors import UserError
from mingpt_lightning.gguf_file import is_gguf
from mingpt_lightning.gguf_tokenizer import gguf_tokenizer
from mingpt_lightning.text import unicode
from mingpt_lightning.tokenizer import CharTokenizer, Tokenizer
from mingpt_lightning.tokenizer_files import BYTES, END_OF_TEXT, byte_level, is_byte_level, load_backend, read_files

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

PROBE = "".join(map(chr, [*range(0x800), *range(0x800, 0xD800, 999), *range(0xE000, 0x110000, 999)])) + "  e\u0301 \n\n"
"""A text with every byte of UTF-8, repeated spaces, and what a normaliser would change."""


LONGEST = 256
"""Bytes after which a word is cut when a vocabulary is learned: the time grows with the square of a word's length."""


class FastTokenizer(Tokenizer):
    """Any tokenizer of the `tokenizers` library, as a pretrained model brings it: WordPiece, Unigram, words, BPE.

    What it does to spaces, case and unknown characters is its own; `BPETokenizer` is one that keeps every text exactly.

    tokenizer: the content of a tokenizer.json. special_tokens: ids by config.json's names, such as
    {"bos_token_id": 0, "eos_token_id": [2, 3]}; None: beginning and end are `<|endoftext|>`, where the vocabulary has
    it, else the only special token that there is. chat_template: how a conversation becomes text, in Jinja; see `chat`.
    end_of_text: what ends a document; None where there is none.

    Raises UserError for anything but a tokenizer.json, and for an id that it lacks.
    """

    name = "tokenizers"

    def __init__(
        self, tokenizer: str, special_tokens: Mapping[str, Any] | None = None, chat_template: str | None = None
    ):
        self.backend = load_backend(tokenizer)
        self.chat_template = chat_template
        default = self.only_special()
        if special_tokens is not None and {*numbers(special_tokens)} == {default}:
            special_tokens = None  # GPT-2's, whose files name it three times
        given = {} if default is None else {"bos_token_id": default, "eos_token_id": default}
        self.special_tokens: dict[str, Any] = given if special_tokens is None else dict(special_tokens)
        added = self.backend.get_added_tokens_decoder()
        for number in numbers(self.special_tokens):
            text = self.backend.id_to_token(number)
            if text is None:
                what = f"special_tokens={self.special_tokens} has an id that the vocabulary lacks: {number}"
                raise UserError(what, "special_tokens", f"Use less than {self.vocab_size}.")
            if number not in added:
                self.backend.add_special_tokens([text])  # which vocab.json doesn't say
        self.stop_tokens = tuple(numbers({"eos": self.special_tokens.get("eos_token_id")}))
        self.end_of_text: int | None = next(iter(self.stop_tokens), None)
        self.start_token = self.special_tokens.get("bos_token_id", self.end_of_text)
        arguments: dict[str, Any] = {} if special_tokens is None else {"special_tokens": self.special_tokens}
        arguments |= {} if chat_template is None else {"chat_template": chat_template}
        super().__init__(tokenizer=self.backend.to_str(), **arguments)

    def only_special(self) -> int | None:
        """The id of `<|endoftext|>`, or of the only special token; None where there is neither."""
        special = [number for number, token in self.backend.get_added_tokens_decoder().items() if token.special]
        number = self.backend.token_to_id(END_OF_TEXT)
        return special[0] if number is None and len(special) == 1 else number

    @property
    def vocab_size(self) -> int:
        return max(self.backend.get_vocab().values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(unicode(text, "prompt"), add_special_tokens=False).ids

    def encode_prompt(self, text: str) -> list[int]:
        return self.backend.encode(unicode(text, "prompt")).ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of many texts, on all cores: a uint32 array for each."""
        encodings = self.backend.encode_batch_fast([unicode(text, "text") for text in texts], add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, tokens: Sequence[int]) -> str:
        size = self.vocab_size
        return self.backend.decode([token for token in tokens if token < size], skip_special_tokens=False)

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        so_far, shown = list[int](), ""
        for token in tokens:
            so_far.append(token)
            text = self.decode(so_far)
            if text.startswith(shown) and not text.endswith("\ufffd"):  # which may be a part of a character
                yield text[len(shown) :]
                shown = text
        yield self.decode(so_far)[len(shown) :]

    def hugging_face(self) -> "Backend":
        return load_backend(self.arguments["tokenizer"])


def numbers(special_tokens: Mapping[str, Any]) -> Iterator[int]:
    """The ids of special tokens, in order."""
    for given in special_tokens.values():
        yield from given if isinstance(given, list) else [] if given is None else [given]


class BPETokenizer(FastTokenizer):
    """Byte-level BPE: frequent byte strings are tokens, and any text can be encoded and comes back exactly.

    Arguments as for `FastTokenizer`. The names of added tokens in a text are one token each, `<|endoftext|>` is where
    the vocabulary has it. Ids beyond the vocabulary, which padded models have, decode to nothing.

    Raises UserError for any other kind of tokenizer, and for one that doesn't reproduce every text exactly.
    Source: Radford et al. 2019, section 2.2; Sennrich et al. 2016.
    """

    name = "bpe"
    unit = "byte"

    def __init__(
        self, tokenizer: str, special_tokens: Mapping[str, Any] | None = None, chat_template: str | None = None
    ):
        super().__init__(tokenizer, special_tokens, chat_template)
        if not is_byte_level(self.arguments["tokenizer"]) or self.decode(self.encode(PROBE)) != PROBE:
            what = "this tokenizer is not byte-level BPE, or doesn't reproduce every text exactly"
            raise UserError(what, "tokenizer", "Use one like GPT-2's: no normaliser, no added spaces.")

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> "BPETokenizer":
        """The tokenizer of a hub id, a folder or a tokenizer.json; also of OpenAI's encoder.json and vocab.bpe."""
        files = read_files(name, revision)
        return cls(files.content, files.special_tokens or None, files.chat_template)

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, waiting: Callable[[float], None] | None = None
    ) -> "BPETokenizer":
        """A vocabulary of 256 bytes, the merges that compress these texts most, and `<|endoftext|>` as the last id.

        The same texts give the same tokenizer; short ones may offer fewer merges than `vocab_size` has room for.
        `<|endoftext|>` in a text separates documents. Words, and text without spaces, are cut after LONGEST bytes.
        waiting: called about every second, with the seconds so far.

        Raises UserError when vocab_size is less than 257.
        """
        from tokenizers import Regex, models, pre_tokenizers, trainers

        if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or vocab_size < 257:
            raise UserError(f"vocab_size={vocab_size} is too small", "vocab_size", "Use 257, for all bytes, or more.")
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False)
        backend = byte_level(models.BPE())
        cut = pre_tokenizers.Split(Regex(f".{{{LONGEST}}}"), "isolated")
        whole, backend.pre_tokenizer = backend.pre_tokenizer, pre_tokenizers.Sequence([backend.pre_tokenizer, cut])
        parts = (part for text in texts for part in unicode(text, "text").split(END_OF_TEXT))
        interruptible(partial(backend.train_from_iterator, parts, trainer), waiting)
        backend.pre_tokenizer = whole
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


def with_chat_template(tokenizer: FastTokenizer, template: str) -> FastTokenizer:
    """The same tokenizer with another chat template."""
    return type(tokenizer)(**tokenizer.arguments | {"chat_template": template})


def interruptible(work: Callable[[], None], waiting: Callable[[float], None] | None) -> None:
    """Do work that holds no lock of Python's in a thread, so that a signal ends the wait for it at once.

    waiting: called about every second, with the seconds so far. Raises what the work raises.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    began, thread = time.monotonic(), threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(1)
        if waiting is not None:
            waiting(time.monotonic() - began)
    for error in failed:
        raise error


def read_tokenizer(
    name: str | Path, revision: str | None = None, special_tokens: Mapping[str, Any] | None = None
) -> Tokenizer:
    """The tokenizer of a hub id, a folder, a tokenizer.json or a GGUF file; see `make_tokenizer`.

    special_tokens: instead of those in its files.
    """
    files = gguf_tokenizer(name) if is_gguf(name) and revision is None else read_files(name, revision)
    special = files.special_tokens if special_tokens is None else special_tokens
    return make_tokenizer(files.content, special, files.chat_template)


def make_tokenizer(
    content: str, special_tokens: Mapping[str, Any] | None = None, chat_template: str | None = None
) -> Tokenizer:
    """The content of a tokenizer.json as byte-level BPE, as what `CharTokenizer.save` wrote, or as a FastTokenizer."""
    parts = json.loads(load_backend(content).to_str())
    if parts["model"]["type"] == "WordLevel":
        vocabulary, unknown = parts["model"]["vocab"], parts["model"]["unk_token"]
        on_unknown = "skip" if parts["normalizer"] else unknown if unknown in vocabulary else "error"
        if all(len(character) == 1 for character in vocabulary):
            tokenizer = CharTokenizer("".join(vocabulary), on_unknown)
            if tokenizer.hugging_face().get_vocab() == vocabulary:
                return tokenizer
    try:
        return BPETokenizer(content, special_tokens or None, chat_template)
    except UserError as error:
        if error.where != "tokenizer":
            raise
        return FastTokenizer(content, special_tokens or None, chat_template)

"""Text to tokens and back: characters, and GPT-2's byte-level BPE.

A tokenizer is a class with a `name` and plain `arguments`, so that a checkpoint can hold it without pickling anything:
`Tokenizer.from_state` rebuilds it by name. Projects whose prompts have a notation of their own ("85+50") define their
tokenizer beside their datamodule. The merges of BPE are made by the `tokenizers` library, which writes tokenizer.json.
"""

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mingpt_lightning import bpe
from mingpt_lightning.errors import CheckpointError, UserError
from mingpt_lightning.text import code_points, describe, unicode

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


class Tokenizer(ABC):
    """Turns what people write into token ids, and back.

    name: what a checkpoint calls this class. answer_length: for a task with one right answer, the number of tokens in
    it; None for open-ended text. start_token: what an empty prompt starts from; None if there is nothing to start
    from. stop_tokens: those that end a text.
    """

    name: ClassVar[str]
    answer_length: int | None = None
    start_token: int | None = None
    stop_tokens: tuple[int, ...] = ()

    def __init__(self, **arguments: Any):
        self.arguments = arguments

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """How many different tokens there are."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt. Raises UserError, naming what it cannot read."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, as people write it."""

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text of tokens that come one by one, in pieces of whole characters; joined, they are `decode` of all."""
        yield self.decode(list(tokens))

    def hugging_face(self) -> "Backend | None":
        """The same tokenizer for the `tokenizers` library and transformers; None for a notation of one task."""
        return None

    def save(self, folder: str | Path) -> None:
        """Write a tokenizer.json, which `read_tokenizer` and transformers read. Raises UserError if it can't be one."""
        backend = self.hugging_face()
        if backend is None:
            raise UserError(f"tokenizer '{self.name}' has a notation of its own", "tokenizer", "Save its `state`.")
        Path(folder).mkdir(parents=True, exist_ok=True)
        backend.save(str(Path(folder) / "tokenizer.json"))

    def state(self) -> dict[str, Any]:
        """Plain data from which `from_state` makes an equal tokenizer."""
        return {"name": self.name, "arguments": self.arguments}

    @staticmethod
    def from_state(state: dict[str, Any]) -> "Tokenizer":
        """The inverse of `state`. Raises CheckpointError for a tokenizer that no imported module defines."""
        known = {cls.name: cls for cls in Tokenizer.__subclasses__()}
        if state["name"] not in known:
            fix = "Import the datamodule that defines it first."
            raise CheckpointError(f"tokenizer '{state['name']}' is not known here", "checkpoint", fix)
        return known[state["name"]](**state["arguments"])


class CharTokenizer(Tokenizer):
    """One token per Unicode character.

    characters: the vocabulary; token i is the i-th character in sorted order.
    on_unknown: what happens to a character outside of it: "error" names it, "skip" drops it, and any single character
    of the vocabulary takes its place.

    >>> CharTokenizer(characters="abc").encode("cab")
    [2, 0, 1]
    """

    name = "characters"

    def __init__(self, characters: str, on_unknown: str = "error"):
        super().__init__(characters="".join(sorted(set(characters))), on_unknown=on_unknown)
        self.codes = code_points(self.arguments["characters"])
        self.on_unknown = on_unknown
        self.start_token = max(self.arguments["characters"].find("\n"), 0)
        if on_unknown not in ("error", "skip") and (len(on_unknown) != 1 or on_unknown not in characters):
            fix = "Use error, skip, or one character of the vocabulary to put in its place."
            raise UserError(f"on_unknown={on_unknown!r} is not possible", "on_unknown", fix)

    @property
    def vocab_size(self) -> int:
        return len(self.codes)

    def encode(self, text: str) -> list[int]:
        return self.encode_array(text).tolist()

    def encode_array(self, text: str, where: str = "prompt") -> np.ndarray:
        """Token ids in one array of the smallest integer type that holds the vocabulary; `where` is for errors."""
        codes = code_points(text)
        tokens = np.searchsorted(self.codes, codes)
        unknown = self.codes[np.minimum(tokens, self.vocab_size - 1)] != codes
        if unknown.any():
            if self.on_unknown == "error":
                names = ", ".join(describe(chr(code)) for code in np.unique(codes[unknown])[:10])
                fix = "Leave it out, or set on_unknown=skip or on_unknown=CHARACTER."
                raise UserError(f"characters that the model has never seen: {names}", where, fix)
            if self.on_unknown == "skip":
                tokens = tokens[~unknown]
            else:
                tokens[unknown] = np.searchsorted(self.codes, ord(self.on_unknown))
        return tokens.astype(np.min_scalar_type(self.vocab_size - 1))

    def decode(self, tokens: Sequence[int]) -> str:
        characters = self.arguments["characters"]
        return "".join(characters[token] for token in tokens)

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        return (self.decode([token]) for token in tokens)

    def hugging_face(self) -> "Backend":
        """A word-level tokenizer whose words are characters. Raises UserError for a vocabulary that isn't Unicode."""
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

        characters = unicode(self.arguments["characters"], "characters")
        unknown = self.on_unknown if len(self.on_unknown) == 1 else "<unk>"  # which isn't there: an error
        backend = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token=unknown))
        if self.on_unknown == "skip":
            known = "".join(f"\\x{{{ord(c):x}}}" for c in characters)
            backend.normalizer = normalizers.Replace(Regex(f"[^{known}]"), "")
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
        return backend


class BPETokenizer(Tokenizer):
    """Byte-level BPE, as GPT-2 has it: frequent strings of bytes are tokens, and any text can be written in them.

    tokenizer: the content of a tokenizer.json. `<|endoftext|>` in a text is one token, where the vocabulary has it
    (end_of_text; None where it hasn't). Ids beyond the vocabulary, which padded models have, stand for nothing.

    Raises UserError for any other kind of tokenizer, and for one that doesn't give back each text as it was.
    Source: Radford et al. 2019, section 2.2; Sennrich et al. 2016.
    """

    name = "bpe"

    def __init__(self, tokenizer: str):
        self.backend = bpe.load(tokenizer)
        self.end_of_text: int | None = self.backend.token_to_id(bpe.END_OF_TEXT)
        if self.end_of_text is not None:
            self.backend.add_special_tokens([bpe.END_OF_TEXT])  # which vocab.json doesn't say
            self.start_token, self.stop_tokens = self.end_of_text, (self.end_of_text,)
        super().__init__(tokenizer=self.backend.to_str())
        if not bpe.is_byte_level(self.arguments["tokenizer"]) or self.decode(self.encode(bpe.PROBE)) != bpe.PROBE:
            what = "this tokenizer is not byte-level BPE, or doesn't give back each text as it was"
            raise UserError(what, "tokenizer", "Use one like GPT-2's: no normaliser, no added spaces.")

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> "BPETokenizer":
        """The tokenizer of a hub id, a folder or a tokenizer.json; also of OpenAI's encoder.json and vocab.bpe."""
        return cls(bpe.read_json(name, revision))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """A vocabulary of 256 bytes, the merges that help these texts most, and `<|endoftext|>` as the last id.

        The same texts give the same tokenizer; short ones may offer fewer merges than `vocab_size` has room for.
        Raises UserError when vocab_size is less than 257.
        """
        return cls(bpe.train(texts, vocab_size).to_str())

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of each token; those of a special token are its name."""
        return bpe.token_bytes(self.backend)

    @cached_property
    def byte_lengths(self) -> np.ndarray:
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
        return bpe.load(self.arguments["tokenizer"])

    def show(self, text: str) -> str:
        """How a text becomes tokens, as a table: its pieces, their bytes, what the merges make of them, the ids.

        No merge crosses the border of a piece. Tokens are written as in the vocabulary, where "Ġ" is a space.
        """
        return bpe.table(self.backend, self.token_bytes, unicode(text, "text"))


def read_tokenizer(name: str | Path, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a hub id, a folder or a tokenizer.json: BPE, or what `CharTokenizer.hugging_face` made."""
    content = bpe.read_json(name, revision)
    parts = json.loads(bpe.load(content).to_str())
    if parts["model"]["type"] != "WordLevel":
        return BPETokenizer(content)
    vocabulary, unknown = parts["model"]["vocab"], parts["model"]["unk_token"]
    on_unknown = "skip" if parts["normalizer"] else unknown if unknown in vocabulary else "error"
    tokenizer = CharTokenizer("".join(vocabulary), on_unknown)
    if tokenizer.hugging_face().get_vocab() != vocabulary:
        raise UserError(f"the words of {name} are not characters", "tokenizer", "Use byte-level BPE.")
    return tokenizer

"""Text to token ids and back. A tokenizer is a class with a `name` and plain `arguments`.

So a checkpoint can hold one without pickling anything: `Tokenizer.from_state` finds the class by its name, in a
registry of the classes that have been imported. Projects whose prompts have their own notation ("85+50") define their
tokenizer beside their datamodule. Byte-level BPE is in `bpe.py`.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mingpt_lightning.errors import CheckpointError, UserError
from mingpt_lightning.text import code_points, describe_character, unicode

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


SHIPPED = ("adder", "sort", "pixels")
"""The projects of this repository that have a tokenizer of their own, of the same name."""


class Tokenizer(ABC):
    """Turns text into token ids and back.

    name: identifies the class in a checkpoint; every subclass has its own.
    answer_length: for a task with one right answer, the number of tokens in it; None for open-ended text.
    start_token: what an empty prompt starts from; None if there is no such token. stop_tokens: those that end a text.
    unit: "character", "byte" or "dimension", where the loss can be given in bits per unit. byte_lengths: how many
    units each token stands for, such as the bytes of its text, (vocab_size,) int64; None where a token is one unit.
    picture: height and width, where a sequence is the pixels of a picture, from its top; see `write_pictures`.
    """

    name: ClassVar[str]
    answer_length: int | None = None
    start_token: int | None = None
    stop_tokens: tuple[int, ...] = ()
    unit: str | None = None
    byte_lengths: np.ndarray | None = None
    picture: tuple[int, int] | None = None

    registry: ClassVar[dict[str, type["Tokenizer"]]] = {}

    def __init_subclass__(cls, **arguments: Any):
        super().__init_subclass__(**arguments)
        if "name" not in vars(cls):
            what = f"{cls.__qualname__} has no `name` of its own"
            raise UserError(what, cls.__module__, "Give it one: it is how a checkpoint finds the class.")
        known = Tokenizer.registry.setdefault(cls.name, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            what = f"two tokenizers have the name '{cls.name}': {known.__module__}.{known.__qualname__} and this one"
            raise UserError(what, f"{cls.__module__}.{cls.__qualname__}", "Give it another `name`.")
        Tokenizer.registry[cls.name] = cls  # a class that a notebook defines again

    def __init__(self, **arguments: Any):
        self.arguments = arguments

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of tokens in the vocabulary."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The token ids of a prompt. Raises UserError, naming what it cannot encode."""

    def encode_prompt(self, text: str) -> list[int]:
        """The token ids that a model continues: those of the text, and what the tokenizer puts around every prompt."""
        return self.encode(text)

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some token ids."""

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """Decode tokens as they arrive, in pieces of whole characters; joined, they equal `decode` of them all."""
        yield self.decode(list(tokens))

    def write_pictures(
        self, file: Path, rows: Sequence[Sequence[Sequence[int]]], prompts: Sequence[str] | None = None
    ) -> None:
        """Write rows of pictures as a PNG, each row after the picture that its prompt names.

        A picture is the tokens of its pixels, of which the last ones may be missing.
        """
        raise UserError(f"tokenizer '{self.name}' is for text", "tokenizer", "There is nothing to draw.")

    def hugging_face(self) -> "Backend | None":
        """The same tokenizer for the `tokenizers` library and transformers; None for a task's own notation."""
        return None

    def save(self, folder: str | Path) -> None:
        """Write a tokenizer.json that transformers and `bpe.read_tokenizer` load. Raises UserError if there is none."""
        backend = self.hugging_face()
        if backend is None:
            what = f"tokenizer '{self.name}' has its own notation, which tokenizer.json cannot express"
            raise UserError(what, "tokenizer", "Save its `state()` instead.")
        Path(folder).mkdir(parents=True, exist_ok=True)
        backend.save(str(Path(folder) / "tokenizer.json"))

    def state(self) -> dict[str, Any]:
        """Plain data from which `from_state` makes an equal tokenizer."""
        return {"name": self.name, "arguments": self.arguments}

    @staticmethod
    def from_state(state: dict[str, Any]) -> "Tokenizer":
        """The inverse of `state`. Raises CheckpointError for a tokenizer that no imported module defines."""
        if state["name"] in SHIPPED:
            with contextlib.suppress(ImportError):
                import_module(f"projects.{state['name']}.datamodule")
        if state["name"] not in Tokenizer.registry:
            fix = "Import the datamodule that defines it first."
            raise CheckpointError(f"tokenizer '{state['name']}' is not known here", "checkpoint", fix)
        return Tokenizer.registry[state["name"]](**state["arguments"])


class CharTokenizer(Tokenizer):
    """One token per Unicode character.

    characters: the vocabulary; token i is the i-th character in sorted order.
    on_unknown: what happens to a character outside of it: "error" names it, "skip" drops it, and any single character
    of the vocabulary takes its place.

    >>> CharTokenizer(characters="abc").encode("cab")
    [2, 0, 1]
    """

    name = "characters"
    unit = "character"

    def __init__(self, characters: str, on_unknown: str = "error"):
        super().__init__(characters="".join(sorted(set(characters))), on_unknown=on_unknown)
        self.codes = code_points(self.arguments["characters"])
        self.on_unknown = on_unknown
        self.start_token = max(self.arguments["characters"].find("\n"), 0)
        if on_unknown not in ("error", "skip") and (len(on_unknown) != 1 or on_unknown not in characters):
            fix = "Use error, skip, or a replacement character from the vocabulary."
            raise UserError(f"on_unknown={on_unknown!r} is not possible", "on_unknown", fix)

    @property
    def vocab_size(self) -> int:
        return len(self.codes)

    def encode(self, text: str) -> list[int]:
        return self.encode_array(text).tolist()

    def encode_array(self, text: str, where: str = "prompt") -> np.ndarray:
        """The token ids as an array of the smallest integer type that holds them; `where` is for errors."""
        codes = code_points(text)
        tokens = np.searchsorted(self.codes, codes)
        unknown = self.codes[np.minimum(tokens, self.vocab_size - 1)] != codes
        if unknown.any():
            if self.on_unknown == "error":
                names = ", ".join(describe_character(chr(code)) for code in np.unique(codes[unknown])[:10])
                fix = "Remove them, or set on_unknown=skip or on_unknown=CHARACTER."
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
        unknown = self.on_unknown if len(self.on_unknown) == 1 else "<unk>"  # which isn't in the vocabulary: an error
        backend = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token=unknown))
        if self.on_unknown == "skip":
            known = "".join(f"\\x{{{ord(c):x}}}" for c in characters)
            backend.normalizer = normalizers.Replace(Regex(f"[^{known}]"), "")
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
        return backend

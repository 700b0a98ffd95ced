"""Text to tokens and back.

A tokenizer is a class with a `name` and plain `arguments`, so that a checkpoint can hold it without pickling anything:
`Tokenizer.from_state` rebuilds it by name. Projects whose prompts have a notation of their own ("85+50") define their
tokenizer beside their datamodule.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from mingpt_lightning.errors import CheckpointError, UserError


class Tokenizer(ABC):
    """Turns what people write into token ids, and back.

    name: what a checkpoint calls this class. answer_length: for a task with one right answer, the number of tokens in
    it; None for open-ended text. start_token: what an empty prompt starts from.
    """

    name: ClassVar[str]
    answer_length: int | None = None
    start_token: int = 0

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


def code_points(text: str) -> np.ndarray:
    """The Unicode code points of a text, uint32, without a Python object per character."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def characters_of(codes: Iterable[int]) -> str:
    """The inverse of `code_points`."""
    return "".join(map(chr, codes))


def describe(character: str) -> str:
    """A character so that a person can find it: 'é' (U+00E9)."""
    return f"{character!r} (U+{ord(character):04X})"

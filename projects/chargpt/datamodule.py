"""Character-level text, after minGPT's chargpt project.

The text is one array of token ids in memory, one byte each for up to 256 different characters. Training draws windows
without replacement; validation and test read their part of the text once, in windows that don't overlap.
"""

import hashlib
import http.client
import urllib.request
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from mingpt_lightning.datamodule import SequenceDataModule, Split, WindowDataset, check_split, split_bounds
from mingpt_lightning.errors import ResourceError, UserError, require_positive
from mingpt_lightning.files import atomic_write, write_error
from mingpt_lightning.text import characters_of, code_points, language_reference, read_text, user_cache
from mingpt_lightning.tokenizer import CharTokenizer


class CharDataModule(SequenceDataModule):
    """Any text, character by character.

    path: the text file; without it, `url` (fetched once, checked against `sha256`, kept in the user's cache folder);
    without both, the Python language reference that ships with every Python. encoding: see `read_text`.
    split: the fractions of the text for training, validation and test, in this order.
    characters: the vocabulary; None takes all characters of the text. on_unknown: see `CharTokenizer`.

    Raises UserError for a text that is missing, empty, unreadable, too short, or has characters outside of a given
    vocabulary.
    """

    sources = ("path", "url", "sha256")

    def __init__(
        self,
        path: str | None = None,
        *,
        url: str | None = None,
        sha256: str | None = None,
        encoding: str | None = None,
        block_size: int = 64,
        split: Sequence[float] = (0.9, 0.05, 0.05),
        characters: str | None = None,
        on_unknown: str = "error",
        batch_size: int = 64,
        seed: int = 0,
    ):
        super().__init__(batch_size, seed)
        require_positive(block_size=block_size)
        check_split(split)
        file = Path(path).expanduser() if path is not None else fetch(url, sha256) if url is not None else None
        name = str(file or "the Python language reference")
        if characters is None:
            characters = characters_of(
                np.unique(np.concatenate([np.unique(code_points(t)) for t in read(file, encoding)]))
            )
        self.tokenizer = CharTokenizer(characters, on_unknown)
        if self.tokenizer.vocab_size < 2:
            what = f"the vocabulary of {name} is {self.tokenizer.arguments['characters']!r}"
            raise UserError(what, "path", "Give at least two different characters; there is nothing to learn.")
        if not characters.strip():
            raise UserError(f"there is no text in {name}, only white space", "path", "Give another file.")
        self.tokens = np.concatenate([self.tokenizer.encode_array(text, name) for text in read(file, encoding)])
        self.block_size = block_size
        self.bounds = split_bounds(len(self.tokens), split, block_size, name, "characters")

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of all tokens."""
        return hashlib.sha256(self.tokens.data).hexdigest()

    def dataset(self, split: Split) -> WindowDataset:
        start, end = self.bounds[split]
        return WindowDataset(self.tokens[start:end], self.block_size, 1 if split == "train" else self.block_size)


def read(file: Path | None, encoding: str | None) -> Iterator[str]:
    """The text of a file in chunks; of the Python language reference when there is no file."""
    return iter(["\n".join(language_reference())]) if file is None else read_text(file, encoding=encoding)


def fetch(url: str, sha256: str | None) -> Path:
    """A file from the web, downloaded once into the user's cache folder.

    Raises ResourceError when it can't be downloaded or stored, and UserError when it hasn't got that hash.
    """
    cache = user_cache()
    file = cache / f"{hashlib.sha256(f'{url} {sha256}'.encode()).hexdigest()[:12]}-{url.rsplit('/', 1)[-1]}"
    if not file.exists():
        offline = "Download it by hand and set path to the file."
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                data = response.read()
        except (OSError, http.client.HTTPException, ValueError) as error:  # no answer, half of one, or no URL
            raise ResourceError(f"cannot fetch {url}: {error}", "url", offline) from error
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise UserError(f"{url} is not the expected file: its SHA-256 differs", "sha256", offline)
        try:
            with atomic_write(file, shared=True) as part:
                part.write_bytes(data)
        except OSError as error:
            raise write_error(file, error, "XDG_CACHE_HOME", offline) from error
    return file

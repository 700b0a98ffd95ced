"""Characters of any text, after minGPT's chargpt project.

The text is held as one array of token ids, one byte each for up to 256 different characters. Training draws windows
without replacement; validation and test read their part of the text once, in windows that don't overlap.
"""

import codecs
import hashlib
import http.client
import os
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mingpt_lightning.datamodule import IGNORE, Batch, SequenceDataModule, Split
from mingpt_lightning.errors import ResourceError, UserError, require_positive
from mingpt_lightning.tokenizer import CharTokenizer, characters_of, code_points

CHUNK = 2**22  # bytes of a file that are turned into tokens at a time


class WindowDataset:
    """Windows of a text: (B,) indices -> two (B, block_size) tensors, the second one token ahead.

    stride: how far apart windows start. 1 gives every window; block_size gives windows that don't overlap, the last
    of which takes no loss for what the one before has already counted.
    """

    def __init__(self, tokens: np.ndarray, block_size: int, stride: int):
        self.tokens = tokens
        self.block_size = block_size
        self.stride = stride
        self.last = len(tokens) - block_size - 1  # where the last window starts

    def __len__(self) -> int:
        return 0 if self.last < 0 else -(-self.last // self.stride) + 1

    def __getitem__(self, indices: Tensor) -> Batch:
        wanted = indices * self.stride
        starts = wanted.clamp(max=self.last)
        windows = self.tokens[starts.numpy()[:, None] + np.arange(self.block_size + 1)]
        sequence = torch.from_numpy(windows.astype(np.int64))
        inputs, targets = sequence[:, :-1], sequence[:, 1:]
        counted = (wanted - starts)[:, None]  # by the window before
        if counted.any():
            targets = targets.masked_fill(torch.arange(self.block_size) < counted, IGNORE)
        return inputs, targets


class CharDataModule(SequenceDataModule):
    """Any UTF-8 text, character by character.

    path: the text file; without it, `url` (fetched once, checked against `sha256`, kept in the user's cache folder);
    without both, the Python language reference that ships with every Python.
    split: the shares of the text for training, validation and test, in this order.
    characters: the vocabulary; None takes all characters of the text. on_unknown: see `CharTokenizer`.

    Raises UserError for a text that is missing, empty, not UTF-8, too short, or has characters outside of a given
    vocabulary.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        url: str | None = None,
        sha256: str | None = None,
        block_size: int = 64,
        split: Sequence[float] = (0.9, 0.05, 0.05),
        characters: str | None = None,
        on_unknown: str = "error",
        batch_size: int = 64,
        seed: int = 0,
    ):
        super().__init__(batch_size, seed)
        require_positive(block_size=block_size)
        if len(split) != 3 or min(split) < 0 or not split[0] or abs(sum(split) - 1) > 1e-6:
            fix = "Give the shares for training, validation and test, such as [0.9,0.05,0.05]."
            raise UserError(f"split={list(split)} does not add up to 1", "datamodule.split", fix)
        file = Path(path).expanduser() if path is not None else fetch(url, sha256) if url is not None else None
        name = str(file or "the Python language reference")
        if characters is None:
            characters = characters_of(np.unique(np.concatenate([np.unique(code_points(t)) for t in read(file)])))
        self.tokenizer = CharTokenizer(characters, on_unknown)
        if self.tokenizer.vocab_size < 2:
            what = f"the vocabulary of {name} is {self.tokenizer.arguments['characters']!r}"
            raise UserError(what, "datamodule", "Give at least two different characters; there is nothing to learn.")
        self.tokens = np.concatenate([self.tokenizer.encode_array(text, name) for text in read(file)])
        self.block_size = block_size
        first, second = int(split[0] * len(self.tokens)), int((split[0] + split[1]) * len(self.tokens) + 1e-6)
        self.bounds = {"train": (0, first), "val": (first, second), "test": (second, len(self.tokens))}
        for part, share in zip(("train", "val", "test"), split, strict=True):
            length = self.bounds[part][1] - self.bounds[part][0]
            if share and length < block_size + 1:
                what = f"the {part} split of {name} has {length} characters, too few for block_size={block_size}"
                fix = f"Give more text, or block_size={length - 1} or less." if length > 1 else "Give more text."
                raise UserError(what, "datamodule", fix)

    def dataset(self, split: Split) -> WindowDataset:
        start, end = self.bounds[split]
        return WindowDataset(self.tokens[start:end], self.block_size, 1 if split == "train" else self.block_size)


def read(file: Path | None) -> Iterator[str]:
    """The text of a UTF-8 file, piece by piece; of the Python language reference when there is no file."""
    if file is None:
        from pydoc_data.topics import topics

        yield "\n".join(topics[name] for name in sorted(topics))
        return
    if not file.is_file():
        reason = "is a folder" if file.is_dir() else "does not exist"
        raise UserError(f"{file.absolute()} {reason}", "datamodule.path", "Give the path of a text file.")
    decoder, size = codecs.getincrementaldecoder("utf-8")(), 0
    try:
        with file.open("rb") as stream:
            if stream.read(3) != codecs.BOM_UTF8:
                stream.seek(0)
            if not stream.peek(1):
                raise UserError(f"{file} is empty", "datamodule.path", "There is no text in it.")
            while data := stream.read(CHUNK):
                size = stream.tell()
                if text := decoder.decode(data):
                    yield text
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:  # its `object` is the end of what was read
        what = f"{file} is not UTF-8: byte {size - len(error.object) + error.start}"
        raise UserError(what, "datamodule.path", "Convert it, for example with iconv -t UTF-8.") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", "datamodule.path", "Check its rights.") from error


def fetch(url: str, sha256: str | None) -> Path:
    """A file from the web, downloaded once into the user's cache folder.

    Raises ResourceError when it can't be had, naming the way out, and UserError when it isn't the file of that hash.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mingpt_lightning"
    file = cache / f"{hashlib.sha256(f'{url} {sha256}'.encode()).hexdigest()[:12]}-{url.rsplit('/', 1)[-1]}"
    if not file.exists():
        offline = "Download it by hand and give datamodule.path=FILE."
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                data = response.read()
        except (OSError, http.client.HTTPException, ValueError) as error:  # no answer, half of one, or no URL
            raise ResourceError(f"cannot fetch {url}: {error}", "datamodule.url", offline) from error
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise UserError(f"{url} is not the expected file: its SHA-256 differs", "datamodule.sha256", offline)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}.part")
            part.write_bytes(data)
            part.replace(file)
        except OSError as error:
            raise ResourceError(f"cannot write {file}: {error.strerror}", "XDG_CACHE_HOME", offline) from error
    return file

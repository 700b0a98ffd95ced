"""Any text in the tokens of GPT-2, or of a byte-level BPE of your own.

The text is tokenised once, into a file of the user's cache folder that is mapped into memory: start-up and memory
don't grow with it. Training draws windows without replacement; validation and test read their part of the tokens
once, in windows that don't overlap.
"""

import mmap
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from mingpt_lightning.bpe import BPETokenizer, FastTokenizer, make_tokenizer, read_tokenizer, with_chat_template
from mingpt_lightning.console import console
from mingpt_lightning.datamodule import (
    BatchLoader,
    SequenceDataModule,
    Split,
    WindowDataset,
    check_length,
    check_split,
    split_bounds,
)
from mingpt_lightning.errors import UserError, require_positive
from mingpt_lightning.text import user_cache
from projects.text.cache import Cache, digest
from projects.text.corpus import Corpus

VERSION = 1
"""Of the files in the cache; another one when the same text would give other files."""

BATCH = 2**21  # characters that are tokenised at a time
TRAINED_ON = 2**28  # the most characters that a new vocabulary is trained on
PATIENCE = 10.0
"""Seconds between two lines that say how far something is."""

SEARCHED = 2**16  # tokens to either side in which the end of a document is looked for at first

LARGE = 2**28  # bytes of tokens that may not stay in memory, so that they are read in small pieces


class TextDataModule(SequenceDataModule):
    """Text of any size, as one sequence of tokens in which `<|endoftext|>` ends each document.

    path, text_field, encoding: which documents; see `Corpus`. val_path, test_path: those for validation and test, if
    they have files of their own; a vocabulary is trained on `path` alone.
    tokenizer: a hub id, a folder, a tokenizer.json or the content of one, at `revision` on the hub; None trains one
    of `vocab_size` tokens on the text. special_tokens: ids by config.json's names, such as {"eos_token_id": 2}, which
    replace those in the tokenizer's files; see `FastTokenizer`. chat_template: the same; it is kept for generation.
    split: the fractions of `path`'s tokens for training, validation and test, in this order, as far as these have no
    files of their own. The parts begin with a document, where one begins within a quarter of the shortest part.
    shuffle: False trains on windows that don't overlap, in the order of the text. cache_dir: None is the user's cache
    folder.

    Raises UserError for a text that is missing, empty, unreadable or too short, ResourceError for an unwritable cache.
    """

    tokenizer: FastTokenizer

    def __init__(
        self,
        path: str | list[str] | None = None,
        *,
        val_path: str | list[str] | None = None,
        test_path: str | list[str] | None = None,
        tokenizer: str | None = None,
        revision: str | None = None,
        special_tokens: dict[str, int | list[int]] | None = None,
        chat_template: str | None = None,
        vocab_size: int = 2048,
        text_field: str = "text",
        encoding: str | None = None,
        block_size: int = 64,
        split: Sequence[float] = (0.9, 0.05, 0.05),
        shuffle: bool = True,
        cache_dir: str | None = None,
        batch_size: int = 64,
        seed: int = 0,
    ):
        super().__init__(batch_size, seed)
        require_positive(block_size=block_size)
        check_split(split)
        if revision is not None and tokenizer is None:
            raise UserError(f"revision={revision} of no tokenizer", "revision", "Give a tokenizer.")
        cache = Cache(user_cache("cache_dir") / "tokens" if cache_dir is None else Path(cache_dir).expanduser())
        corpus = Corpus(path, text_field, encoding)
        given_paths: dict[Split, str | list[str] | None] = {"val": val_path, "test": test_path}
        own = {
            part: Corpus(p, text_field, encoding, f"{part}_path") for part, p in given_paths.items() if p is not None
        }
        if tokenizer is None:
            key = digest(VERSION, corpus.identity(cache), vocab_size)
            entry = cache.entry(key, partial(write_tokenizer, corpus, vocab_size))
            tokenizer = (entry / "tokenizer.json").read_text(encoding="utf-8")
        given = tokenizer.lstrip().startswith("{")
        made = (make_tokenizer if given else partial(read_tokenizer, revision=revision))(
            tokenizer, special_tokens=special_tokens
        )
        if not isinstance(made, FastTokenizer):
            raise UserError("this is a vocabulary of characters", "tokenizer", "Use chargpt for text by character.")
        self.tokenizer = made if chat_template is None else with_chat_template(made, chat_template)
        self.fingerprint, self.tokens = tokens_of(corpus, self.tokenizer, cache)
        self.block_size = block_size
        self.shuffle = shuffle
        shares = [0.0 if part in own else share for part, share in zip(get_args(Split), split, strict=True)]
        shares = [share / sum(shares) for share in shares]
        bounds = split_bounds(len(self.tokens), shares, block_size, corpus.name, "tokens")
        moved = at_documents(self.tokens, self.tokenizer.end_of_text, bounds, block_size)
        if moved != bounds:
            self.fingerprint = digest(self.fingerprint, moved)
        self.parts = {part: self.tokens[start:end] for part, (start, end) in moved.items()}
        for part, others in own.items():
            key, self.parts[part] = tokens_of(others, self.tokenizer, cache)
            check_length(part, len(self.parts[part]), block_size, others.name, "tokens")
            self.fingerprint = digest(self.fingerprint, part, key)

    def dataset(self, split: Split) -> WindowDataset:
        stride = 1 if split == "train" and self.shuffle else self.block_size
        return WindowDataset(self.parts[split], self.block_size, stride)

    def train_dataloader(self) -> BatchLoader:
        if self.shuffle:
            return super().train_dataloader()
        return self.loader(self.dataset("train"), self.batch_size)


def tokens_of(corpus: Corpus, tokenizer: FastTokenizer, cache: Cache) -> tuple[str, np.ndarray]:
    """The tokens of a corpus, from the cache, and what identifies them."""
    key = digest(VERSION, corpus.identity(cache), tokenizer.arguments)
    entry = cache.entry(key, partial(write_tokens, corpus, tokenizer))
    return key, map_tokens(entry / "tokens.bin", token_type(tokenizer))


def at_documents(
    tokens: np.ndarray, end_of_text: int | None, bounds: dict[Split, tuple[int, int]], block_size: int
) -> dict[Split, tuple[int, int]]:
    """The bounds of the splits, each moved to the nearest end of a document within a quarter of the shortest split.

    They stay where there is none, and where a split would become too short for a window.
    """
    reach = min(end - start for start, end in bounds.values() if end > start) // 4
    val, test = (nearest_end(tokens, end_of_text, bounds[part][0], reach) for part in ("val", "test"))
    moved: dict[Split, tuple[int, int]] = {"train": (0, val), "val": (val, test), "test": (test, len(tokens))}
    short = any(bounds[part][0] < bounds[part][1] and end - start <= block_size for part, (start, end) in moved.items())
    return bounds if short else moved


def nearest_end(tokens: np.ndarray, end_of_text: int | None, place: int, reach: int) -> int:
    """Where a document ends next to a place, at most `reach` tokens away; else, the place."""
    width = min(SEARCHED, reach)
    while width and end_of_text is not None:
        start = max(0, place - width - 1)
        ends = np.flatnonzero(tokens[start : place + width] == end_of_text) + start + 1
        if len(ends):
            return int(ends[np.abs(ends - place).argmin()])
        width = min(2 * width, reach) if width < reach else 0
    return place


def map_tokens(file: Path, dtype: np.dtype) -> np.ndarray:
    """The tokens of a memory-mapped file."""
    with file.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    if len(mapped) > LARGE and hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_RANDOM)  # without it, reading a window reads megabytes around it
    return np.frombuffer(mapped, dtype)


def token_type(tokenizer: FastTokenizer) -> np.dtype:
    """The integer type of the tokens on disk: two bytes where they suffice."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")


def write_tokenizer(corpus: Corpus, vocab_size: int, folder: Path) -> None:
    """Train a tokenizer on a text and write its tokenizer.json into a folder."""
    texts = first(with_progress(corpus, corpus.pieces(), "counting words"), TRAINED_ON)
    say = Reporter()
    try:
        tokenizer = BPETokenizer.train(
            texts, vocab_size, lambda seconds: say(f"learning a vocabulary: {seconds:.0f} s")
        )
    except BaseException:  # such as a signal, while a bar is on the screen
        Console(stderr=True).show_cursor()
        raise
    (folder / "tokenizer.json").write_text(tokenizer.arguments["tokenizer"], encoding="utf-8")


def write_tokens(corpus: Corpus, tokenizer: FastTokenizer, folder: Path) -> None:
    """Write all tokens of a text, one after the other, into tokens.bin of a folder."""
    dtype = token_type(tokenizer)
    end = np.array([] if tokenizer.end_of_text is None else [tokenizer.end_of_text], dtype).tobytes()
    with (folder / "tokens.bin").open("wb") as file:
        for batch in batches(with_progress(corpus, corpus.pieces(tokenizer), "tokenising")):
            for tokens, (_, ends) in zip(tokenizer.encode_batch([text for text, _ in batch]), batch, strict=True):
                file.write(tokens.astype(dtype).tobytes() + end * ends)
        if not file.tell():
            raise UserError(f"{corpus.name} is empty", corpus.where, "There is no text in it.")
    for note in corpus.notes:
        console.print(f"note: {note}", markup=False)


def first(pieces: Iterator[tuple[str, bool]], characters: int) -> Iterator[str]:
    """The text of the first pieces, which have so many characters or a few more."""
    for text, _ in pieces:
        if characters <= 0:
            return
        yield text
        characters -= len(text)


def batches(pieces: Iterator[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    """Pieces to work on at once: enough for all cores, and little enough for any memory."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += max(len(piece[0]), 256)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def with_progress(corpus: Corpus, pieces: Iterator[tuple[str, bool]], what: str) -> Iterator[tuple[str, bool]]:
    """The pieces, while standard error shows how far they are: by a bar if it's a terminal, else by a line at times."""
    columns = TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    terminal, say, done = sys.stderr.isatty(), Reporter(), 0
    with Progress(*columns, console=Console(stderr=True), disable=not terminal, transient=True) as progress:
        task = progress.add_task(what, total=corpus.size or None)
        for piece in pieces:
            yield piece
            done += len(piece[0].encode())
            progress.update(task, completed=done)
            if not terminal and corpus.files:
                share = f"{done / corpus.size:.0%} of {decimal(corpus.size)}" if corpus.size else decimal(done)
                say(f"{what}: {share}")


class Reporter:
    """Prints what it is given on standard error, but never sooner than PATIENCE seconds after the time before."""

    def __init__(self) -> None:
        self.before = time.monotonic()

    def __call__(self, text: str) -> None:
        if time.monotonic() - self.before >= PATIENCE:
            self.before = time.monotonic()
            console.print(text, markup=False)

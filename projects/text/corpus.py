"""Documents: from files to pieces of text, one piece in memory at a time."""

import glob
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mingpt_lightning.bpe import FastTokenizer
from mingpt_lightning.errors import UserError
from mingpt_lightning.rows import check_plain, format_of, plain_name, read_rows
from mingpt_lightning.text import check_encoding, language_reference, read_text
from projects.text.cache import Cache, digest, time_stamp

PIECE = 2**16
"""Characters after which a document is cut at the next place where its tokens can't change."""

LONGEST = 2**20
"""Characters after which it's cut anywhere, to bound the memory; that may cost a token."""

GLANCE = 1000
"""Rows after which a file is refused when none of them has a text."""

PLACE = re.compile(r"(?<=[^\W_])(?=[ \n]\w)")
"""Between a letter or digit and one space before a word: no known pre-tokeniser joins these two."""


class Corpus:
    """The documents of some files, in order.

    paths: files, or globs in which `**` is any number of folders; a glob's matches come in sorted order, and those
    that are empty are left out. None is the Python language reference, a document per topic. JSON, CSV and Parquet
    files have a document per row, under `text_field` (see `mingpt_lightning.rows`); any other file is one document.
    encoding: of files without a byte order mark; None is UTF-8. where: the parameter that names the files, for errors.

    Raises UserError for a path that matches no file.
    """

    def __init__(
        self,
        paths: str | list[str] | None = None,
        text_field: str = "text",
        encoding: str | None = None,
        where: str = "path",
    ):
        self.text_field, self.encoding, self.where = text_field, encoding, where
        given = [paths] if isinstance(paths, str) else paths or []
        if paths is not None and not given:
            raise UserError(f"{where}={paths} names no file", where, "Give a path, or null.")
        if encoding is not None:
            check_encoding(encoding)
        self.files = list(dict.fromkeys(file for path in given for file in matches(path, where)))
        self.name = (
            str(given[0]) if len(given) == 1 else f"{len(self.files)} files" if given else "the language reference"
        )
        self.stamps = {file: time_stamp(file, where) for file in self.files}
        known = all(format_of(file) != "parquet" and plain_name(file) == file for file in self.files)
        self.size = sum(stamp[0] for stamp in self.stamps.values()) if known else 0  # bytes of text; 0: unknown
        self.notes: list[str] = []
        """What was left out when the documents were read last."""

    def identity(self, cache: Cache) -> str:
        """A hash of the documents: of their text, not of where it is."""
        if not self.files:
            return digest(language_reference())
        files = [[format_of(file), cache.sha256(file, self.where)] for file in self.files]
        return digest(files, self.text_field, *([] if self.encoding is None else [self.encoding]))

    def documents(self) -> Iterator[Iterable[str]]:
        """Each document, in pieces as they come."""
        self.notes = []
        if not self.files:
            yield from ([topic] for topic in language_reference())
        for file in self.files:
            if format_of(file) == "text":
                yield self.plain_text(file)
            else:
                yield from ([text] for text in self.texts(file))
        for file, stamp in self.stamps.items():
            if time_stamp(file, self.where) != stamp:
                raise UserError(f"{file} changed while it was read", self.where, "Try again.")

    def plain_text(self, file: Path) -> Iterator[str]:
        """The text of a file that is one document."""
        for number, text in enumerate(read_text(file, self.where, self.encoding)):
            if not number:
                check_plain(file, text, self.text_field)
            yield text

    def texts(self, file: Path) -> Iterator[str]:
        """The texts of a file's rows. Rows without one are left out and noted; a file without any is refused."""
        total = without = 0
        first = ""
        for row in read_rows(file, self.text_field, self.where, self.encoding):
            total += 1
            if row.text:
                yield row.text
                continue
            without += 1
            first = first or f"in {row.place} it {row.instead or 'is empty'}"
            if without == total == GLANCE:
                break
        if total == without > 0:
            none = "no row" if total < GLANCE else f"none of the first {GLANCE:,} rows"
            what = f"{none} of {file} has text under {self.text_field!r}: {first}"
            raise UserError(what, "text_field", "Set text_field.")
        if without:
            left_out = f"{without:,} of {total:,} rows of {file} have no text under {self.text_field!r}"
            self.notes.append(f"{left_out} and are left out: {first}")

    def pieces(self, tokenizer: FastTokenizer | None = None) -> Iterator[tuple[str, bool]]:
        """All text, and which pieces end a document.

        The tokens of the pieces are those of the whole documents, except where a document has no place to cut it at
        for LONGEST characters. `tokenizer` says whether there are such places; None is GPT-2's.
        """
        search = PLACE.search if tokenizer is None or splits_words(tokenizer) else nowhere
        for document in self.documents():
            rest = ""
            for text in document:
                rest, start = rest + text, 0
                while len(rest) - start > PIECE:
                    place = search(rest, start + PIECE, start + LONGEST)
                    if place is None and len(rest) - start <= LONGEST:
                        break
                    end = start + LONGEST if place is None else place.start()
                    yield rest[start:end], False
                    start = end
                rest = rest[start:]
            yield rest, True


def matches(path: str, where: str) -> list[Path]:
    """The files that a path or a glob names."""
    path = str(Path(path).expanduser())
    if Path(path).is_file():
        return [Path(path)]
    if Path(path).is_dir():
        fix = f"Give its files, such as {Path(path) / '**' / '*.txt'}."
        raise UserError(f"{Path(path).absolute()} is a folder", where, fix)
    if not glob.has_magic(path):
        raise UserError(f"{Path(path).absolute()} does not exist", where, "Give the path of a text file.")
    files = [Path(found) for found in sorted(glob.glob(path, recursive=True))]
    files = [file for file in files if file.is_file() and file.stat().st_size]
    if not files:
        raise UserError(f"no file with text matches {path}", where, "Check it with ls.")
    return files


def splits_words(tokenizer: FastTokenizer) -> bool:
    """Whether a tokenizer parts words at spaces and line ends before it merges anything, as nearly all do."""
    if tokenizer.backend.pre_tokenizer is None:
        return False
    pieces = tokenizer.backend.pre_tokenizer.pre_tokenize_str("a b\nc 1\n2")
    names = tokenizer.backend.get_added_tokens_decoder().values()
    return {1, 3, 5, 7} <= {start for _, (start, _) in pieces} and not any(re.search(r"\s", n.content) for n in names)


def nowhere(text: str, start: int, end: int) -> re.Match[str] | None:
    """A search that finds nothing."""
    return None

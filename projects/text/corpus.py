"""Documents: from files to pieces of text, one piece in memory at a time."""

import glob
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mingpt_lightning.bpe import FastTokenizer
from mingpt_lightning.errors import UserError
from mingpt_lightning.text import language_reference, read_text, unicode
from projects.text.cache import Cache, digest, time_stamp

PIECE = 2**16
"""Characters after which a document is cut at the next place where its tokens can't change."""

LONGEST = 2**20
"""Characters after which it's cut anywhere, to bound the memory; that may cost a token."""

PLACE = re.compile(r"(?<=[^\W_])(?=[ \n]\w)")
"""Between a letter or digit and one space before a word: no known pre-tokeniser joins these two."""


class Corpus:
    """The documents of some files, in order.

    paths: files, or globs in which `**` is any number of folders; a glob's matches come in sorted order, and those
    that are empty are left out. None is the Python language reference, a document per topic. Files named .jsonl and
    .parquet have a document per row, under `text_field`; any other file is one document.

    Raises UserError for a path that matches no file.
    """

    def __init__(self, paths: str | list[str] | None = None, text_field: str = "text"):
        self.text_field = text_field
        given = [paths] if isinstance(paths, str) else paths or []
        if paths is not None and not given:
            raise UserError(f"path={paths} names no file", "path", "Give a path, or null.")
        self.files = list(dict.fromkeys(file for path in given for file in matches(path)))
        self.name = (
            str(given[0]) if len(given) == 1 else f"{len(self.files)} files" if given else "the language reference"
        )
        self.stamps = {file: time_stamp(file) for file in self.files}
        self.size = sum(stamp[0] for stamp in self.stamps.values())  # bytes

    def identity(self, cache: Cache) -> str:
        """A hash of the documents: of their text, not of where it is."""
        if not self.files:
            return digest(language_reference())
        return digest([[kind(file), cache.sha256(file)] for file in self.files], self.text_field)

    def documents(self) -> Iterator[Iterable[str]]:
        """Each document, in pieces as they come."""
        if not self.files:
            yield from ([topic] for topic in language_reference())
        for file in self.files:
            if kind(file) == "text":
                yield read_text(file)
            else:
                rows = {"jsonl": jsonl_rows, "parquet": parquet_rows}[kind(file)](file, self.text_field)
                yield from ([text] for text in rows if text)
        for file, stamp in self.stamps.items():
            if time_stamp(file) != stamp:
                raise UserError(f"{file} changed while it was read", "path", "Try again.")

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


def matches(path: str) -> list[Path]:
    """The files that a path or a glob names."""
    path = str(Path(path).expanduser())
    if Path(path).is_file():
        return [Path(path)]
    if Path(path).is_dir():
        fix = f"Give its files, such as {Path(path) / '**' / '*.txt'}."
        raise UserError(f"{Path(path).absolute()} is a folder", "path", fix)
    if not glob.has_magic(path):
        raise UserError(f"{Path(path).absolute()} does not exist", "path", "Give the path of a text file.")
    files = [Path(found) for found in sorted(glob.glob(path, recursive=True))]
    files = [file for file in files if file.is_file() and file.stat().st_size]
    if not files:
        raise UserError(f"no file with text matches {path}", "path", "Check it with ls.")
    return files


def kind(file: Path) -> str:
    """How a file is read: jsonl, parquet or text."""
    suffix = file.suffix.lower()
    return suffix[1:] if suffix in (".jsonl", ".parquet") else "text"


def jsonl_rows(file: Path, field: str) -> Iterator[str]:
    """The texts of a file with a JSON object per line. Raises UserError, naming the line."""
    fix = f'Write {{"{field}": "..."}} a line, or set text_field.'
    for number, line in enumerate(lines(read_text(file)), 1):
        where = f"{file}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"not JSON: {error}", where, fix) from error
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            found = f"there is {', '.join(map(str, list(row)[:9]))}" if isinstance(row, dict) else "this is no object"
            raise UserError(f"no text under {field!r}; {found}", where, fix)
        yield unicode(row[field], where)


def lines(pieces: Iterable[str]) -> Iterator[str]:
    """The lines of a text that comes in pieces."""
    parts: list[str] = []
    for piece in pieces:
        first, *others = piece.split("\n")
        parts.append(first)
        for other in others:
            yield "".join(parts)
            parts = [other]
    yield "".join(parts)


def parquet_rows(file: Path, field: str) -> Iterator[str]:
    """The texts of a column of a Parquet file; a row without one counts as empty."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        fix = 'Run pip install "mingpt-lightning[parquet]".'
        raise UserError(f"{file} needs pyarrow to be read", "path", fix) from error
    try:
        with parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if field not in names or str(table.schema_arrow.field(field).type) not in ("string", "large_string"):
                fix = f"Set text_field; its columns are {', '.join(names[:20])}."
                raise UserError(f"{file} has no text under {field!r}", "text_field", fix)
            for batch in table.iter_batches(batch_size=256, columns=[field]):
                yield from (text or "" for text in batch.column(0).to_pylist())
    except (OSError, UnicodeDecodeError, arrow.ArrowException) as error:
        message = " ".join(str(error).split())
        raise UserError(f"{file} cannot be read: {message}", "path", "Recreate the file.") from error


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

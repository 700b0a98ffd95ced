"""Reading text: Unicode, files in chunks, compressed and in any encoding, and the reference that ships with Python."""

import bz2
import codecs
import gzip
import io
import lzma
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from encodings.aliases import aliases
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mingpt_lightning.errors import ResourceError, UserError, nearest

CHUNK = 2**22  # bytes of a file that are read at a time

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # begins with UTF-16's
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}

NO_TEXT = {
    rb"PK\x03\x04": ("a zip archive, as .docx, .xlsx and .epub are too", "Unpack it, or save its text."),
    rb"7z\xbc\xaf|Rar!|(?s:.{257})ustar": ("an archive", "Unpack it."),
    rb"%PDF-": ("a PDF", "Extract its text, for example with pdftotext."),
    rb"PAR1": ("a Parquet file", "Rename it to .parquet."),
    rb"version https://git-lfs": ("a pointer of git-lfs, not the file itself", "Run git lfs pull."),
}
"""How files begin that are no text: what they are, and what to do."""


def code_points(text: str) -> np.ndarray:
    """The Unicode code points of a text, uint32, without a Python object per character."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def characters_of(codes: Iterable[int]) -> str:
    """The inverse of `code_points`."""
    return "".join(map(chr, codes))


def describe_character(character: str) -> str:
    """A character with its code point: 'é' (U+00E9)."""
    return f"{character!r} (U+{ord(character):04X})"


def unicode(text: str, where: str) -> str:
    """Return `text`. Raises UserError, naming the position, if it holds a lone surrogate, as JSON escapes can make."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f"character {error.start} is a lone surrogate: {describe_character(text[error.start])}"
        raise UserError(what, where, "Remove it.") from error
    return text


def language_reference() -> list[str]:
    """Python's language reference, one text per topic, in the same order for a given version of Python."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def user_cache(where: str = "XDG_CACHE_HOME") -> Path:
    """The folder for files that can be recreated or downloaded again; set XDG_CACHE_HOME to move it.

    Raises ResourceError where a user without a home folder has not set it. where: the parameter, for errors.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mingpt_lightning"
    except RuntimeError as error:
        what = "there is no place for a cache: this user has no home folder"
        raise ResourceError(what, where, "Set XDG_CACHE_HOME to a folder.") from error


def read_text(file: Path, where: str = "path", encoding: str | None = None) -> Iterator[str]:
    """The text of a file in chunks, decompressed (gzip, bzip2, xz, zstd) and without its byte order mark.

    encoding: of a file that begins with no byte order mark, by Python's name for it; None is UTF-8. where: the
    parameter that names the file, for errors.

    Raises UserError when the file is missing, empty, unreadable, no text, or in another encoding (naming the byte).
    """
    if not file.is_file():
        reason = "is a folder" if file.is_dir() else "does not exist"
        raise UserError(f"{file.absolute()} {reason}", where, "Give the path of a text file.")
    name = check_encoding(encoding or "utf-8")
    size = 0
    try:
        with file.open("rb") as raw, decompressed(raw, file, where) as stream:
            head = stream.peek(512)
            mark = next((mark for mark in BYTE_ORDER_MARKS if head.startswith(mark)), b"")
            size = len(stream.read(len(mark)))
            if not stream.peek(1):
                raise UserError(f"{file} is empty", where, "There is no text in it.")
            if not mark and encoding is None:
                check_text(head, file, where)
            name = BYTE_ORDER_MARKS.get(mark, name)
            decoder = codecs.getincrementaldecoder(name)()
            while data := stream.read(CHUNK):
                size += len(data)
                if text := decoder.decode(data):
                    yield text
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:  # its `object` is the end of what was read
        what = f"{file} is not {name.upper()}: byte {size - len(error.object) + error.start}"
        raise UserError(
            what, "encoding", "Give the one that it is in, such as cp1252, gb18030 or shift_jis."
        ) from error
    except OSError as error:
        if error.strerror is None:  # of a compressed file
            raise damaged(file, where, error) from error
        raise UserError(f"{file} cannot be read: {error.strerror}", where, "Check its permissions.") from error
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise damaged(file, where, error) from error


def check_encoding(name: str) -> str:
    """The name of a text encoding, if Python knows it."""
    try:
        "".encode(name)
        return name
    except (LookupError, ValueError) as error:
        names = {alias.replace("_", "-") for alias in {*aliases, *aliases.values()}}
        raise UserError(f"there is no encoding {name!r}", "encoding", nearest(name, names)) from error


def check_text(head: bytes, file: Path, where: str) -> None:
    """Raise UserError for a file that begins as no UTF-8 text does."""
    for pattern, (kind, fix) in NO_TEXT.items():
        if re.match(pattern, head):
            raise UserError(f"{file} is {kind}", where, fix)
    even, odd = head[::2].count(0), head[1::2].count(0)
    if even + odd:
        if max(even, odd) > len(head) // 8 and min(even, odd) < len(head) // 64:
            guess = f"utf-16-{'le' if odd > even else 'be'}"
            raise UserError(f"{file} looks like UTF-16", "encoding", f"Set encoding={guess}.")
        what = f"{file} is no text: byte {head.index(0)} is zero"
        raise UserError(what, "encoding", "Give a text file; encoding=utf-8 reads it all the same.")


def decompressed(raw: io.BufferedReader, file: Path, where: str) -> io.BufferedReader:
    """The content of a file that may be compressed, which its first bytes say."""
    head = raw.peek(16)
    if head.startswith(b"\x1f\x8b\x08"):
        stream: Any = gzip.GzipFile(fileobj=raw)
    elif re.match(b"BZh[1-9]1AY&SY", head):
        stream = bz2.BZ2File(raw)
    elif head.startswith(b"\xfd7zXZ\x00"):
        stream = lzma.LZMAFile(raw)  # noqa: SIM115 (closed with the file below it)
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        stream = pyarrow(file, where).CompressedInputStream(raw, "zstd")
    else:
        return raw
    return io.BufferedReader(stream)


def damaged(file: Path, where: str, error: Exception) -> UserError:
    """The error for a compressed file that can't be decompressed."""
    return UserError(f"{file} is damaged: {' '.join(str(error).split())}", where, "Fetch it again.")


def pyarrow(file: Path, where: str) -> ModuleType:
    """The optional package that reads zstd and Parquet; raises UserError, naming the command, where it's missing."""
    try:
        import pyarrow
    except ImportError as error:
        fix = 'Run pip install "mingpt-lightning[parquet]".'
        raise UserError(f"{file} needs pyarrow to be read", where, fix) from error
    return pyarrow

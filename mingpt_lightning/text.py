"""Reading text: Unicode, UTF-8 files in chunks, and the language reference that ships with Python."""

import codecs
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from mingpt_lightning.errors import ResourceError, UserError

CHUNK = 2**22  # bytes of a file that are read at a time


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


def read_text(file: Path, where: str = "path") -> Iterator[str]:
    """The text of a UTF-8 file in chunks, without a byte order mark. `where` names the parameter in errors.

    Raises UserError when the file is missing, empty, unreadable, or not UTF-8 (naming the byte).
    """
    if not file.is_file():
        reason = "is a folder" if file.is_dir() else "does not exist"
        raise UserError(f"{file.absolute()} {reason}", where, "Give the path of a text file.")
    decoder, size = codecs.getincrementaldecoder("utf-8")(), 0
    try:
        with file.open("rb") as stream:
            if stream.read(3) != codecs.BOM_UTF8:
                stream.seek(0)
            if not stream.peek(1):
                raise UserError(f"{file} is empty", where, "There is no text in it.")
            while data := stream.read(CHUNK):
                size = stream.tell()
                if text := decoder.decode(data):
                    yield text
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:  # its `object` is the end of what was read
        what = f"{file} is not UTF-8: byte {size - len(error.object) + error.start}"
        raise UserError(what, where, "Convert it, for example with iconv -t UTF-8.") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", where, "Check its permissions.") from error

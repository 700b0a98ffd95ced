"""A cache of folders whose content took long to compute: each entry is complete, or absent.

An entry is a folder named by a hash of everything that its content depends on, so it never gets stale. It is filled
beside its place and renamed into it: a process that is killed leaves an incomplete one only as a `.part` folder, and of
two processes that create the same one, either may win.
"""

import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mingpt_lightning.errors import ResourceError, UserError
from mingpt_lightning.files import atomic_write, sync, write_error

META = "meta.json"
DAY = 86400.0
SETTLED = 2.0
"""Seconds for which a file must have been left alone: within the tick of a clock, a change changes no time stamp."""


class Cache:
    """Entries, and the hashes of files that were read before. Raises ResourceError when it can't be written.

    folder: where they are; it is created when it is needed.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def entry(self, key: str, make: Callable[[Path], None]) -> Path:
        """The folder of a key; where there is none, or an incomplete one, `make` is called to fill an empty folder."""
        entry = self.folder / key
        if is_complete(entry):
            return entry
        part = self.folder / f"{key}.{uuid.uuid4().hex}.part"
        try:
            part.mkdir(parents=True)
            for old in self.folder.glob("*.part"):
                if max(path.stat().st_mtime for path in (old, *old.glob("*"))) < time.time() - DAY:  # of a killed run
                    shutil.rmtree(old, ignore_errors=True)
            make(part)
            sizes = {path.name: path.stat().st_size for path in sorted(part.iterdir())}
            (part / META).write_text(json.dumps(sizes))
            for path in (*part.iterdir(), part):
                sync(path)
            put(part, entry)
            sync(self.folder)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return entry

    def sha256(self, file: Path, where: str = "path") -> str:
        """The SHA-256 of a file's content, which is read again only when it has changed. where: for errors."""
        memory = self.folder / "files" / f"{digest(str(file.absolute()))}.json"
        stamp = time_stamp(file, where)
        with suppress(OSError, ValueError, TypeError, KeyError):
            known = json.loads(memory.read_text())
            if known["stamp"] == stamp:
                return str(known["sha256"])
        try:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise unreadable(file, where, error) from error
        if time_stamp(file, where) != stamp:
            raise UserError(f"{file} changed while it was read", where, "Try again.")
        if time.time() - max(stamp[1:3]) / 1e9 >= SETTLED:
            with suppress(OSError), atomic_write(memory, shared=True) as part:  # else it's read again next time
                part.write_text(json.dumps({"stamp": stamp, "sha256": content}))
        return content


def digest(*values: Any) -> str:
    """A hash of plain values, as a name."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def time_stamp(file: Path, where: str = "path") -> list[int]:
    """What changes when a file does: size, modification and change time in nanoseconds, inode."""
    try:
        stat = file.stat()
    except OSError as error:
        raise unreadable(file, where, error) from error
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def is_complete(entry: Path) -> bool:
    """Whether all files of an entry are there, in their sizes."""
    try:
        sizes = json.loads((entry / META).read_text())
        return all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def put(part: Path, entry: Path) -> None:
    """Rename a finished entry into its place, unless another process was faster."""
    try:
        part.rename(entry)
    except OSError:
        if not is_complete(entry):
            damaged = part.with_suffix(".damaged.part")
            entry.rename(damaged)
            part.rename(entry)
            shutil.rmtree(damaged, ignore_errors=True)


def unreadable(file: Path, where: str, error: OSError) -> UserError:
    """The error for a file of the corpus that can't be read, or not any more."""
    fix = "Check that it exists, and its permissions."
    return UserError(f"{file} cannot be read: {error.strerror}", where, fix)


def unwritable(folder: Path, error: OSError) -> ResourceError:
    """The error for a cache that can't be written."""
    fix = "Set XDG_CACHE_HOME, or cache_dir, to a folder with space in it."
    return write_error(folder, error, "cache_dir", fix)

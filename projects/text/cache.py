"""A folder of what took long to make: each entry is there as a whole, or not at all.

An entry is a folder named by a key, which is a hash of all that its content depends on; so nothing in it gets stale.
It's made beside its place and renamed into it, so that a process that is killed leaves a half-made one nowhere but in
a `.part` folder, and of two processes that make the same one, either may win.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mingpt_lightning.errors import ResourceError, UserError

META = "meta.json"
DAY = 86400.0
SETTLED = 2.0
"""Seconds for which a file must have been left alone: within the tick of a clock, a change changes no time stamp."""


class Cache:
    """Entries, and the hashes of files that were read before. Raises ResourceError when it can't be written.

    folder: where they are; it's made when it's needed.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def entry(self, key: str, make: Callable[[Path], None]) -> Path:
        """The folder of a key; where there is none, or a damaged one, `make` is called to fill an empty folder."""
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

    def sha256(self, file: Path) -> str:
        """The SHA-256 of a file's content, read once for as long as nothing touches the file."""
        memory = self.folder / "files" / f"{digest(str(file.absolute()))}.json"
        stamp = time_stamp(file)
        with suppress(OSError, ValueError, TypeError, KeyError):
            known = json.loads(memory.read_text())
            if known["stamp"] == stamp:
                return str(known["sha256"])
        try:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise unreadable(file, error) from error
        if time_stamp(file) != stamp:
            raise UserError(f"{file} changed while it was read", "datamodule.path", "Try again.")
        if time.time() - max(stamp[1:3]) / 1e9 >= SETTLED:
            with suppress(OSError):  # then it's read again next time
                memory.parent.mkdir(parents=True, exist_ok=True)
                part = memory.with_suffix(f".{uuid.uuid4().hex}")
                part.write_text(json.dumps({"stamp": stamp, "sha256": content}))
                part.replace(memory)
        return content


def digest(*values: Any) -> str:
    """A name for some plain values: the same name for equal ones only."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def time_stamp(file: Path) -> list[int]:
    """What changes when a file does: size, times of change in nanoseconds, and number."""
    try:
        stat = file.stat()
    except OSError as error:
        raise unreadable(file, error) from error
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def is_complete(entry: Path) -> bool:
    """Whether all files of an entry are there, in their sizes."""
    try:
        sizes = json.loads((entry / META).read_text())
        return all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def put(part: Path, entry: Path) -> None:
    """Give a finished entry its place, unless another process was quicker."""
    try:
        part.rename(entry)
    except OSError:
        if not is_complete(entry):
            damaged = part.with_suffix(".damaged.part")
            entry.rename(damaged)
            part.rename(entry)
            shutil.rmtree(damaged, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    if os.name == "posix" or path.is_file():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def unreadable(file: Path, error: OSError) -> UserError:
    """The error for a file of the corpus that can't be read, or not any more."""
    fix = "Check that it is there, and its rights."
    return UserError(f"{file} cannot be read: {error.strerror}", "datamodule.path", fix)


def unwritable(folder: Path, error: OSError) -> ResourceError:
    """The error for a cache that takes no files."""
    fix = "Give XDG_CACHE_HOME, or datamodule.cache_dir, a folder with room in it."
    return ResourceError(f"cannot write {folder}: {error.strerror or error}", "XDG_CACHE_HOME", fix)

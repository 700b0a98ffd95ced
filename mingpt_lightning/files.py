"""Files that are either whole or absent, and an exclusive lock on a folder.

A file is written beside its target, flushed, and renamed into place: whenever the process is killed, a reader finds the
old file or the new one, never half of one.
"""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from mingpt_lightning.errors import ResourceError, UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PART = ".part"
"""The suffix of a file that is still being written."""


@contextlib.contextmanager
def atomic_write(file: Path, *, durable: bool = False, shared: bool = False) -> Iterator[Path]:
    """Yield a path beside `file` to write to; it replaces `file` when the block ends without an exception.

    durable: wait until the content and the new name are on the disk, so that they survive a power failure.
    shared: other processes may be writing the same file; the path is unique then. Creates the folder if necessary.
    """
    part = file.with_name(f"{file.name}.{uuid.uuid4().hex}{PART}" if shared else f"{file.name}{PART}")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        if durable:
            sync(part)
        os.replace(part, file)
        if durable:
            sync(file.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def write_text(file: Path, text: str, *, durable: bool = False, shared: bool = False) -> None:
    """Write a small UTF-8 file atomically; options as for `atomic_write`."""
    with atomic_write(file, durable=durable, shared=shared) as part:
        part.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk (fsync)."""
    if os.name == "posix" or path.is_file():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_error(path: Path, error: Exception, where: str, fix: str) -> ResourceError:
    """The error for a file or folder that cannot be written."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    if isinstance(error, RuntimeError):  # of torch's writer, which has no better word for it
        reason = "the disk is full, or no longer there"
    if isinstance(error, RuntimeError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with contextlib.suppress(OSError):
            reason += f"; {shutil.disk_usage(path.parent).free / 1e9:,.1f} GB are free"
    return ResourceError(f"cannot write {path}: {reason}", where, fix)


def check_writable(folder: Path, needed: int, where: str) -> None:
    """Raise an error unless `folder` can be written and has `needed` bytes free. Creates it."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}", where, "Choose another folder.") from error
    free = shutil.disk_usage(folder).free
    if free < needed:
        what = f"checkpoints need {needed / 1e9:,.2f} GB and {folder} has {free / 1e9:,.2f} GB free"
        raise ResourceError(what, where, "Free some space, or choose another folder.")


@contextlib.contextmanager
def lock(folder: Path, where: str = "folder") -> Iterator[None]:
    """Hold an exclusive lock on a folder. The operating system releases it when the process ends, however it ends.

    Raises UserError, naming the process, while another process holds it. where: the parameter, for errors.
    """
    file = folder / ".lock"
    try:
        stream = file.open("a+")
    except OSError as error:
        what = f"cannot write {folder}: {error.strerror or error}"
        raise UserError(what, where, "Choose another folder.") from error
    with stream:
        if fcntl is not None:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                stream.seek(0)
                what = f"{folder} is in use by process {stream.read().strip() or 'unknown'}"
                raise UserError(what, where, "Wait until it ends, or choose another folder.") from error
            except OSError:  # a file system without locks
                pass
            if not os.path.exists(file) or not os.path.samestat(os.fstat(stream.fileno()), os.stat(file)):
                raise UserError(f"{folder} was in use a moment ago", where, "Try again.")
        stream.truncate(0)
        stream.write(f"{os.getpid()}")
        stream.flush()
        try:
            yield
        finally:
            file.unlink(missing_ok=True)

"""Checkpoint files on a disk that may fill up, lie or lose its power: a good one is always there, or none was ever.

A file is written beside its place, flushed, read back and hashed; the hash goes into `manifest.json` of its folder;
only then is it renamed into place. So whenever the process is killed, each name holds a whole old file or a whole new
one, and the manifest knows both. A file whose hash it doesn't know isn't read.
"""

import contextlib
import hashlib
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from mingpt_lightning.errors import CheckpointError, ResourceError, UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MANIFEST = "manifest.json"
KEPT = 3
"""Entries of a name in the manifest: the file, the one before, and one that a killed process didn't get to rename."""

PART = ".part"
"""What a file that isn't whole yet ends with."""


def write_checkpoint(content: dict[str, Any], file: Path, step: int, previous: Path | None = None) -> None:
    """Write a checkpoint that is whole or not there, whatever happens; what `file` held becomes `previous`.

    Takes no memory beyond the content. Raises ResourceError when it can't be written; then everything is as before.
    """
    part = file.with_name(file.name + PART)
    try:
        part.unlink(missing_ok=True)
        torch.save(content, part)
        with part.open("rb") as stream, ThreadPoolExecutor(1) as pool:
            flushed = pool.submit(os.fsync, stream.fileno())
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            flushed.result()
        entries = read_manifest(file.parent) or {}
        entries.pop(sha256, None)  # the newest come last
        entries[sha256] = {"file": file.name, "step": step, "bytes": part.stat().st_size}
        older = [key for key, entry in entries.items() if entry["file"] == file.name][:-KEPT]
        write_text(
            file.parent / MANIFEST,
            json.dumps({"format": 1, "sha256": {k: v for k, v in entries.items() if k not in older}}, indent=2),
        )
        if previous is not None and file.exists():
            os.replace(file, previous)
        os.replace(part, file)
        sync(file.parent)
    except (OSError, RuntimeError) as error:  # torch's writer has no better word for a full disk
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise unwritable(file, error) from error


def write_text(file: Path, text: str) -> None:
    """Write a small file that is whole or not there."""
    part = file.with_name(file.name + PART)
    with part.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, file)
    sync(file.parent)


def sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_manifest(folder: Path) -> dict[str, dict[str, Any]] | None:
    """What is known of the files in a folder, by SHA-256, the oldest first; None without a readable manifest."""
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        if all({"file", "step", "bytes"} <= set(entry) for entry in entries.values()):
            return dict(entries)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    return None


def damage(file: Path) -> str | None:
    """What is wrong with a checkpoint file: that it's not what was written; None if nothing is.

    Its SHA-256 must be in the manifest of its folder. A file without a manifest, such as a copy elsewhere, is checked
    by the CRC-32 of each of its records.
    """
    try:
        size = file.stat().st_size
        if not size:
            return "it is empty"
        entries = read_manifest(file.parent)
        if entries is not None:
            known = [entry["bytes"] for entry in entries.values() if entry["file"] == file.name]
            if size not in [entry["bytes"] for entry in entries.values()]:
                expected = f", {known[-1]:,} were written" if known else " and is none that was written here"
                return f"it has {size:,} bytes{expected}"
            with file.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            return None if sha256 in entries else f"its SHA-256 {sha256[:12]}… is not in {MANIFEST}"
        with zipfile.ZipFile(file) as archive:
            record = archive.testzip()
        return record and f"its record {record} has another CRC-32 than was written"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        return f"it is no checkpoint, or not all of one: {error}"


def load_checkpoint(file: Path) -> Any:
    """The plain data of a checkpoint file, on the CPU. Raises CheckpointError for a damaged one, or one with code."""
    if wrong := damage(file):
        raise CheckpointError(f"{file} is damaged: {wrong}", "checkpoint", others(file))
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)|(?:global|class|function) [`'\"]?([\w.]+\.\w+)", str(error))
        name = f" ({found[1] or found[2]})" if found else ""
        what = f"{file} holds code{name}, none of which was run: a checkpoint is plain data"
        raise CheckpointError(what, "checkpoint", "Do not trust where it comes from.") from error
    except Exception as error:  # whatever a crafted archive makes torch say
        what = f"{file} is damaged: {' '.join(str(error).split())[:100]}"
        raise CheckpointError(what, "checkpoint", others(file)) from error


def others(file: Path) -> str:
    """A hint at the good files beside a bad one."""
    if read_manifest(file.parent) is None:
        return "Take another file."
    near = [other for other in sorted(file.parent.glob("*.ckpt")) if other != file and not damage(other)]
    return f"Good: {', '.join(map(str, near))}." if near else "There is no good file beside it."


def unwritable(path: Path, error: OSError | RuntimeError) -> ResourceError:
    """The error for a place that cannot be written."""
    reason = getattr(error, "strerror", None) or "the disk is full, or not there any more"
    with contextlib.suppress(OSError):
        reason += f"; {shutil.disk_usage(path.parent).free / 1e9:,.1f} GB are free"
    fix = "What was saved before is whole. Make room, or choose another run_dir=."
    return ResourceError(f"cannot write {path}: {reason}", "run_dir", fix)


def check_room(folder: Path, needed: int) -> None:
    """Raise an error unless a folder can be written, and has so many bytes free: before hours are spent on it."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        what = f"cannot write {folder}: {error.strerror or error}"
        raise UserError(what, "run_dir", "Choose another run_dir=.") from error
    free = shutil.disk_usage(folder).free
    if free < needed:
        what = f"checkpoints need {needed / 1e9:,.2f} GB and {folder} has {free / 1e9:,.2f} GB free"
        raise ResourceError(what, "run_dir", "Make room, choose another run_dir=, or callbacks.checkpoint=null.")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have a run folder for this process alone. The system ends that with the process, however it ends.

    Raises UserError while another process has it, naming its id.
    """
    file = folder / ".lock"
    try:
        stream = file.open("a+")
    except OSError as error:
        what = f"cannot write {folder}: {error.strerror or error}"
        raise UserError(what, "run_dir", "Choose another run_dir=.") from error
    with stream:
        if fcntl is not None:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                stream.seek(0)
                what = f"{folder} is in use by process {stream.read().strip() or 'unknown'}"
                raise UserError(what, "run_dir", "Wait until it ends, or choose another run_dir=.") from error
            except OSError:  # a file system without locks
                pass
            if not os.path.exists(file) or not os.path.samestat(os.fstat(stream.fileno()), os.stat(file)):
                raise UserError(f"{folder} was in use a moment ago", "run_dir", "Try again.")
        stream.truncate(0)
        stream.write(f"{os.getpid()}")
        stream.flush()
        try:
            yield
        finally:
            file.unlink(missing_ok=True)

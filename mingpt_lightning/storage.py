"""Crash-safe, checksummed checkpoint files.

A checkpoint is written beside its target, flushed, read back and hashed; the hash goes into `manifest.json` of its
folder; only then is it renamed into place. So whenever the process is killed, each name holds an old file or a new one
that is whole, and the manifest lists both. A file whose hash the manifest doesn't list is not loaded.
"""

import contextlib
import hashlib
import json
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from mingpt_lightning.errors import CheckpointError
from mingpt_lightning.files import atomic_write, sync, write_error, write_text
from mingpt_lightning.hub import damage, object_in, reason

KEY = "mingpt_lightning"
"""Where the library's own part of a checkpoint is."""

MANIFEST = "manifest.json"
KEPT = 3
"""Manifest entries per file name: the current file, the one before, and one whose rename a crash prevented."""


def write_checkpoint(content: dict[str, Any], file: Path, step: int, previous: Path | None = None) -> None:
    """Write a checkpoint atomically and list its hash in the manifest; what `file` held becomes `previous`.

    Needs no memory beyond the content. Raises ResourceError when it can't be written; then everything is as before.
    """
    try:
        with atomic_write(file) as part:
            torch.save(content, part)
            with part.open("rb") as stream, ThreadPoolExecutor(1) as pool:
                flushed = pool.submit(os.fsync, stream.fileno())
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
                flushed.result()
            entries = read_manifest(file.parent) or {}
            entries.pop(sha256, None)  # the newest come last
            entries[sha256] = {"file": file.name, "step": step, "bytes": part.stat().st_size}
            for key in [key for key, entry in entries.items() if entry["file"] == file.name][:-KEPT]:
                del entries[key]
            manifest = json.dumps({"format": 1, "sha256": entries}, indent=2)
            write_text(file.parent / MANIFEST, manifest, durable=True)
            if previous is not None and file.exists():
                os.replace(file, previous)
        sync(file.parent)
    except (OSError, RuntimeError) as error:
        fix = "Earlier checkpoints are intact. Free some space, or choose another folder."
        raise write_error(file, error, "dirpath", fix) from error


def read_manifest(folder: Path) -> dict[str, dict[str, Any]] | None:
    """The known files of a folder by their SHA-256, the oldest first; None without a readable manifest."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        if all({"file", "step", "bytes"} <= set(entry) for entry in entries.values()):
            return dict(entries)
    return None


def find_corruption(file: Path) -> str | None:
    """How a checkpoint file differs from what was written; None if it doesn't.

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
        if what := damage(file):
            return f"it {what}"
        if is_legacy(file):
            return None
        with zipfile.ZipFile(file) as archive:
            record = archive.testzip()
        return record and f"its record {record} has another CRC-32 than was written"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        return f"it is no checkpoint, or not all of one: {error}"


def is_legacy(file: Path) -> bool:
    """Whether a file begins as torch wrote them before version 1.6: as a pickle, without checksums."""
    with file.open("rb") as stream:
        return stream.read(2) == b"\x80\x02"


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file that a path means: the file itself, or the best (else the last) one of a run folder.

    Raises CheckpointError when there is none, naming what is there instead.
    """
    if "://" in str(path):
        raise CheckpointError(f"{path} is a URL", "checkpoint", "Download the file and give its path.")
    path = Path(path)
    if path.is_dir():
        for file in (path / folder / name for folder in ("checkpoints", "") for name in ("best.ckpt", "last.ckpt")):
            if file.is_file():
                return file
        if (path / "config.json").is_file():
            what = f"{path} is a model in Hugging Face's layout, not a run"
            raise CheckpointError(what, "checkpoint", f"Load it as a pretrained model of name {path}.")
        raise CheckpointError(f"{path} holds no checkpoints/best.ckpt or last.ckpt", "checkpoint", "Name a run folder.")
    if not path.exists():
        near = sorted(map(str, path.parent.glob("*.ckpt"))) if path.parent.is_dir() else []
        fix = f"There is: {', '.join(near[:5])}." if near else "Name a run folder or a .ckpt file."
        raise CheckpointError(f"{path} does not exist", "checkpoint", fix)
    if path.suffix in (".safetensors", ".bin") and path.with_name("config.json").is_file():
        what = f"{path} belongs to a model in Hugging Face's layout, not to a run"
        raise CheckpointError(what, "checkpoint", f"Load it as a pretrained model of name {path.parent}.")
    return path


def load_checkpoint(file: Path, mmap: bool = False) -> Any:
    """The plain data of a checkpoint file, on the CPU. Raises CheckpointError for a damaged file or one with code.

    mmap: read tensors only where they are used; the file must not be changed in place, which this library never does.
    """
    if wrong := find_corruption(file):
        raise CheckpointError(f"{file} is damaged: {wrong}", "checkpoint", intact_files(file))
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap and not is_legacy(file))
    except Exception as error:  # whatever a crafted archive makes torch raise
        if name := object_in(error):
            what = f"{file} holds code ({name}), none of which was run: a checkpoint is plain data"
            raise CheckpointError(what, "checkpoint", "Do not trust where it comes from.") from error
        what = f"{file} is damaged: {reason(error)[:100]}"
        raise CheckpointError(what, "checkpoint", intact_files(file)) from error


def intact_files(file: Path) -> str:
    """A hint at the intact checkpoints beside a damaged one."""
    if read_manifest(file.parent) is None:
        return "Use another file."
    near = [other for other in sorted(file.parent.glob("*.ckpt")) if other != file and not find_corruption(other)]
    return f"Good: {', '.join(map(str, near))}." if near else "There is no good file beside it."

"""Checkpoint files that are corrupted or hold code: are they refused, and is the previous good one found (F5)?"""

import builtins
import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.reliability.runs import Run, Verdict, hash_of, last_line


def corrupt(file: Path, rng: random.Random) -> str:
    """Corrupt a checkpoint in one of many ways; returns which."""
    data = bytearray(file.read_bytes())
    kind = rng.choice(["truncate", "flip", "flip", "flip", "page", "swap", "splice", "type", "append", "remove bytes"])
    place = rng.randrange(len(data))
    match kind:
        case "truncate":
            del data[place:]
        case "flip":
            data[place] ^= 1 << rng.randrange(8)
        case "page":
            start = place // 4096 * 4096
            data[start : start + 4096] = bytes(len(data[start : start + 4096]))
            if bytes(data) == file.read_bytes():
                data[place] ^= 1
        case "swap":
            data = bytearray(file.with_name("best.ckpt").read_bytes() + rng.randbytes(1))
        case "splice":
            other = file.with_name("best.ckpt").read_bytes()
            data[place:] = other[place:] + rng.randbytes(1)
        case "type":
            data = bytearray(rng.choice([b"", b"hello", b"PK\x03\x04", b"\x89PNG\r\n", b"\x80\x02}q\x00.", b"{}"]))
        case "append":
            data += rng.randbytes(rng.randrange(1, 5000))
        case "remove bytes":
            del data[place : place + rng.randrange(1, 100)]
    file.write_bytes(data)
    return kind


def corrupted(source: Path, number: int) -> Verdict:
    """A corrupted last.ckpt is refused and previous.ckpt is found; with both corrupted, resuming is refused."""
    from mingpt_lightning.checkpoint import read_checkpoint
    from mingpt_lightning.cli.resume import find_resumable
    from mingpt_lightning.errors import CheckpointError

    rng = random.Random(number)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        shutil.copytree(source, run)
        last, previous = (run / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
        kind = corrupt(last, rng)
        try:
            read_checkpoint(last)
            return f"{kind}: read without an error"
        except CheckpointError:
            pass
        found, notes = find_resumable(run, "auto")
        if found != previous or "last.ckpt is damaged" not in notes[0]:
            return f"{kind}: went on with {found}"
        corrupt(previous, rng)
        try:
            return f"{kind}: went on with {find_resumable(run, 'auto')[0]}, which is corrupted"
        except CheckpointError:
            return ""


def corrupted_copy(source: Path, number: int) -> Verdict:
    """A flipped bit in a file without its manifest: refused, or read unchanged, as some bits have no meaning."""
    from mingpt_lightning.checkpoint import read_checkpoint
    from mingpt_lightning.errors import CheckpointError

    good = source / "checkpoints" / "last.ckpt"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "copy.ckpt"
        shutil.copy(good, file)
        data = bytearray(file.read_bytes())
        rng = random.Random(number)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        try:
            content = read_checkpoint(file)
        except CheckpointError:
            return ""
        return (
            ""
            if hash_of(content) == hash_of(read_checkpoint(good))
            else "a flipped bit changed what was read, without an error"
        )


class Canary:
    """An object that calls a function when it is unpickled without restrictions."""

    def __init__(self, function: Any, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def unsafe(source: Path, number: int) -> Verdict:
    """A file that holds code or names classes: refused, and no code is run."""
    with tempfile.TemporaryDirectory() as folder:
        touched = Path(folder) / "touched"
        code = f"open({str(touched)!r}, 'w')"
        functions = [
            (os.system, f"touch {touched}"),
            (builtins.eval, code),
            (builtins.exec, code),
            (subprocess.call, ["touch", str(touched)]),
            (Path.touch, touched),
            (os.mkdir, str(touched)),
        ]
        canary = Canary(*functions[number % len(functions)])
        content = torch.load(source / "checkpoints" / "last.ckpt", weights_only=True)
        file = Path(folder) / "run" / "checkpoints" / "last.ckpt"
        file.parent.mkdir(parents=True)
        match number // len(functions) % 3:
            case 0:
                torch.save({**content, "extra": canary}, file)
            case 1:
                content["mingpt_lightning"]["config"]["model"] = {
                    "_target_": "os.system",
                    "command": f"touch {touched}",
                }
                content["mingpt_lightning"]["gpt"] |= {"_target_": "os.system", "_instantiator": "os.system"}
                torch.save(content, file)
            case 2:
                torch.save(canary, file, _use_new_zipfile_serialization=False)
        run = Run(Path(folder), "task=generate", "checkpoint=run", "prompt=1+1")
        code_ = run.wait()
        if touched.exists():
            return "code was run"
        if code_ != 3 or "Traceback" in run.stderr:
            return f"ended with {code_}: {last_line(run.stderr)}"
        return ""

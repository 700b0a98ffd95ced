"""What reliability costs: the time and memory of saving (F16), and the time to report an error in the config (F18)."""

import argparse
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks.common import ROOT, Table


def save_cost(options: argparse.Namespace, table: Table) -> None:
    """Time and memory of saving 124 M parameters with AdamW's state, beside torch and Lightning (F16)."""
    from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

    from mingpt_lightning.storage import write_checkpoint

    weights = 10**6 if options.tiny else 124_000_000
    content = {name: [torch.randn(weights // 100) for _ in range(100)] for name in ("weights", "first", "second")}

    def plain(file: Path) -> None:
        torch.save(content, file)

    def synced(file: Path) -> None:
        torch.save(content, file)
        with file.open("rb") as stream:
            os.fsync(stream.fileno())

    def ours(file: Path) -> None:
        write_checkpoint(content, file, 0)

    def lightning(file: Path) -> None:
        TorchCheckpointIO().save_checkpoint(content, file)

    seconds: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for _ in range(2 if options.tiny else 7):
            for function in (plain, synced, ours, lightning):
                file = Path(folder) / "x.ckpt"
                file.unlink(missing_ok=True)
                start = time.perf_counter()
                function(file)
                seconds.setdefault(function.__name__, []).append(time.perf_counter() - start)
        for function in (plain, synced, ours, lightning):
            memory[function.__name__] = extra_memory(partial(function, Path(folder) / "x.ckpt"))
    size = 3 * 4 * weights
    for name, times in seconds.items():
        ratios = [mine / theirs for mine, theirs in zip(times, seconds["plain"], strict=True)]
        table.row(
            f"F16 saving {size / 1e9:.2f} GB: {name}",
            f"{median(times):.2f} s ({min(times):.2f} to {max(times):.2f})",
            f"{median(ratios):.2f} times torch.save, {memory[name] / size:.0%} more memory",
        )


def extra_memory(function: Callable[[], None]) -> float:
    """The peak of resident memory that a call adds, in bytes; measured in a fork."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        function()
        peak = next(
            int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
        )
        os.write(writer, struct.pack("q", max(0, peak - before) * 1024))
        os._exit(0)
    result = struct.unpack("q", os.read(reader, 8))[0]
    os.waitpid(pid, 0)
    return float(result)


def config_errors(options: argparse.Namespace, table: Table) -> None:
    """How long a whole process takes to report an error in the config (F18)."""
    cases = ["model=gtp2", "model.n_layerr=4", "trainer.max_steps=abc", "model.n_embd=50", "seed=-1", "optimizer.lr=0"]
    cases += ["model.dropout=2", "resume=maybe", "task=fly", "+colour=3", "scheduler.warmup=2", "compile=maybe"]
    times = []
    for number in range(5 if options.tiny else 50):
        start = time.perf_counter()
        command = [sys.executable, "main.py", cases[number % len(cases)]]
        result = subprocess.run(command, capture_output=True, check=False, cwd=ROOT)
        times.append(time.perf_counter() - start)
        assert result.returncode == 2
        assert result.stderr.startswith(b"error: ")
    worst = sorted(times)[int(0.95 * (len(times) - 1))]
    table.row("F18 an error in the config is reported", f"{len(times)} commands", f"95 % within {worst:.2f} s")

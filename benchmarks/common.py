"""Shared by all benchmarks: contestants in separate processes that take turns, ratios, and tables.

Timings on a shared machine vary from minute to minute, so contestants take turns, and the result is the ratio within a
round: its median, minimum and maximum. Each contestant has its own process, because threads, memory and caches of one
would affect another.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mingpt_lightning.cli.main import SPIN_COUNT
from mingpt_lightning.probe import processor

ROOT = Path(__file__).parent.parent


def parser(doc: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """The options that all benchmarks take."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--peers", type=Path, default=Path("peers"), help="folder with checkouts minGPT and nanoGPT")
    options.add_argument("--rounds", type=int, default=rounds, help="how often each contestant has its turn")
    options.add_argument("--tiny", action="store_true", help="small sizes: does it run?")
    options.add_argument("--json", type=Path, help="a file to which every row is added as a line of JSON")
    return options


class Table:
    """A table that is printed row by row as markdown and, with `--json`, appended to a file as lines of JSON."""

    def __init__(self, options: argparse.Namespace, name: str, *columns: str):
        self.options, self.name, self.columns = options, name, columns
        print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)

    def row(self, *values: Any, **more: Any) -> None:
        """One row; `more` goes into the JSON only."""
        print(f"| {' | '.join(map(shown, values))} |", flush=True)
        if self.options.json:
            entry = {"benchmark": self.name, **dict(zip(self.columns, values, strict=True)), **more}
            with self.options.json.open("a") as stream:
                stream.write(json.dumps(entry) + "\n")


def shown(value: Any) -> str:
    """A value for the table: floats with three significant digits."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def ratio(ours: Iterable[float], theirs: Iterable[float]) -> str:
    """How many times as long theirs took, by round: median (smallest to largest)."""
    ratios = [other / mine for mine, other in zip(ours, theirs, strict=False)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


class Worker:
    """A contestant in a process of its own: `python -m MODULE --worker NAME …`, which calls `serve`.

    The constructor returns when the contestant is ready; each call is one turn and returns its report. Those whose name
    begins with "ours" have the environment that our command line sets for itself.
    """

    def __init__(self, module: str, name: str, *arguments: str):
        command = [sys.executable, "-m", module, "--worker", name, *arguments]
        environment = {**os.environ, "GOMP_SPINCOUNT": SPIN_COUNT} if name.startswith("ours") else None
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )
        self.ready = self.receive()

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"a contestant ended early: {' '.join(map(str, self.process.args))}")  # type: ignore[arg-type]
        return json.loads(line)

    def __call__(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.receive()

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()  # waits, and closes the pipes


def once(module: str, name: str, *arguments: str) -> dict[str, Any]:
    """The report of a contestant that does all its work before it is ready."""
    worker = Worker(module, name, *arguments)
    worker.stop()
    return worker.ready


def serve(turn: Callable[[], dict[str, Any]], **ready: Any) -> None:
    """The worker's side: take a turn for every line of standard input, and report it."""
    report(**ready)
    for _ in sys.stdin:
        start = time.perf_counter()
        result = turn()
        report(**{"seconds": time.perf_counter() - start, **result})


def report(**values: Any) -> None:
    """What a Worker receives at the end of a turn."""
    print(json.dumps({**values, "rss": peak_rss()}), file=sys.__stdout__, flush=True)
    sys.stdout = sys.stderr  # what a peer prints is not part of a report


def peak_rss() -> int:
    """Peak resident memory of this process, in bytes."""
    if peak := status("VmHWM"):
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def allocated() -> int:
    """Anonymous resident memory of this process, in bytes, without pages of files; 0 where /proc is missing."""
    return status("RssAnon")


def status(name: str) -> int:
    """A size in /proc/self/status, in bytes; 0 if missing. VmHWM, unlike ru_maxrss, does not count the parent."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def machine() -> str:
    """A description of the machine: CPU, threads, versions, date."""
    cpu = f"{torch.get_num_threads()} threads of {processor()} ({', '.join(instructions())})"
    return f"{cpu}, Python {platform.python_version()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"


def instructions() -> list[str]:
    """What a CPU has for matrix products, as far as torch uses it."""
    has = {"AMX": torch.cpu._is_amx_tile_supported(), "avx512_bf16": torch.cpu._is_avx512_bf16_supported()}
    return [torch.backends.cpu.get_cpu_capability(), *(name for name, there in has.items() if there)]


def our_run(overrides: list[str], folder: str, *callbacks: Any) -> tuple[Any, Any, Any]:
    """What `python main.py` would train with these overrides: system, Trainer, datamodule. It writes into `folder`."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    from mingpt_lightning.cli.config import CONFIG_DIR
    from mingpt_lightning.cli.run import assemble

    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg: Any = compose("config", [f"run_dir={folder}", *overrides], return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = folder
        HydraConfig.instance().set_config(cfg)
        del cfg.hydra
    run = assemble(cfg, callbacks=list(callbacks))
    return run.system, run.trainer, run.datamodule


def clock(score: Callable[[], dict[str, Any]], every: int, done: Callable[[dict[str, Any]], bool]) -> Any:
    """A callback that records `points`: step, seconds of training, and score; scoring does not count as time."""
    import pytorch_lightning as pl

    class Clock(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.seconds, self.points = 0.0, list[dict[str, Any]]()
            self.start = time.perf_counter()

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            if trainer.global_step % every == 0 or trainer.global_step == trainer.max_steps:
                self.seconds += time.perf_counter() - self.start
                self.points.append({"step": trainer.global_step, "seconds": self.seconds, **score()})
                trainer.should_stop = done(self.points[-1])
                self.start = time.perf_counter()

    return Clock()

"""What the benchmarks share: contestants in processes of their own, turns, ratios, and tables.

Figures of a shared machine vary from minute to minute, so contestants take turns, and what counts is the ratio within a
round: its median, and the smallest and largest. A contestant has a process of its own, because threads, memory and
caches of one would disturb the other.
"""

import argparse
import importlib.util
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

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
    """Rows that are printed in markdown as they come, and written as JSON lines where the options say so."""

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
    """A value as people read it: three significant digits."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def ratio(ours: Iterable[float], theirs: Iterable[float]) -> str:
    """How many times as long theirs took, round by round: median (smallest to largest)."""
    ratios = [other / mine for mine, other in zip(ours, theirs, strict=False)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


class Worker:
    """A contestant in a process of its own: `python -m MODULE --worker NAME …`, which calls `serve`.

    Starting one returns when it is ready; each call is one turn and gives what it reports.
    """

    def __init__(self, module: str, name: str, *arguments: str, environment: dict[str, str] | None = None):
        command = [sys.executable, "-m", module, "--worker", name, *arguments]
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
        self.process.wait()


def serve(turn: Callable[[], dict[str, Any]], **ready: Any) -> None:
    """The other end of a Worker: do a turn for every line of standard input, and report."""
    report(**ready)
    for _ in sys.stdin:
        start = time.perf_counter()
        result = turn()
        report(**{"seconds": time.perf_counter() - start, **result})


def report(**values: Any) -> None:
    """What a Worker receives at the end of a turn."""
    print(json.dumps({**values, "rss": peak_rss()}), file=sys.__stdout__, flush=True)
    sys.stdout = sys.stderr  # whatever a peer prints is no report


def peak_rss() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peer(folder: Path, name: str, file: str) -> Path | None:
    """A file of a peer's checkout; None, which is said, when it isn't there."""
    path = (folder / name / file).resolve()
    if not path.is_file():
        print(f"\n{name} is missing: there is no {folder / name / file}", flush=True)
        return None
    return path


def load(path: Path) -> ModuleType:
    """The module in a file of a peer; its folder goes onto the path for what it imports itself."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def machine() -> str:
    """The machine in words."""
    import torch

    names = [line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name")]
    units = "AMX" if torch.cpu._is_amx_tile_supported() else "no AMX"
    cpu = f"{torch.get_num_threads()} threads of {names[0] if names else platform.processor()} ({units})"
    return f"{cpu}, Python {platform.python_version()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"


def cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []

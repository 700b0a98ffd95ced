"""What is fastest on this CPU, by timing a few products: which dtype, how many threads, which layout of matrices.

Instruction flags don't tell. There are CPUs with bfloat16 instructions that are slower in bfloat16 than in float32, and
containers that see all cores of a machine but may use two of them. Measuring takes a fraction of a second, and is kept
in `probe.json` in the user's cache folder, by processor and version of torch; delete that file to measure again.
"""

import contextlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mingpt_lightning.errors import ResourceError
from mingpt_lightning.files import write_text
from mingpt_lightning.text import user_cache

ROUNDS, ENOUGH = 3, 0.2
"""How often each call is timed at least, and for how many seconds all of them; the best time of each counts."""

Rates = dict[str, float]
"""The speed of each choice, the simplest one first."""

known: dict[str, Rates] = {}
"""What this process has measured or read."""


def fastest(rates: Rates, margin: float = 1.1) -> str:
    """The first choice than which none is `margin` times as fast."""
    return next(name for name, rate in rates.items() if margin * rate >= max(rates.values()))


def rates(question: str, work: float, make_calls: Callable[[], Mapping[str, Callable[[], object]]]) -> Rates:
    """How much of `work` each of some calls does in a second: measured now, or earlier on this machine.

    question: tells these calls from others. make_calls: called only where they must be measured.
    """
    if question not in known:
        with torch.no_grad():
            known[question] = read().get(question) or measure(question, work, make_calls())
    return known[question]


def measure(question: str, work: float, calls: Mapping[str, Callable[[], object]]) -> Rates:
    """Time some calls, and keep their rates, unless another process has kept its own meanwhile."""
    seconds, began, rounds = dict.fromkeys(calls, float("inf")), time.perf_counter(), 0
    while rounds < ROUNDS or time.perf_counter() - began < ENOUGH:
        for name, call in calls.items():  # in turns, so that whatever else is running slows all of them
            call()  # after another one, there is more to do
            started = time.perf_counter()
            call()
            seconds[name] = min(seconds[name], time.perf_counter() - started)
        rounds += 1
    kept = read()
    if question not in kept:
        kept[question] = {name: float(f"{work / best:.4g}") for name, best in seconds.items()}
        with contextlib.suppress(OSError, ResourceError):  # without a cache folder, every process measures
            write_text(user_cache() / "probe.json", json.dumps(read_all() | {machine(): kept}, indent=1), shared=True)
    return kept[question]


def read() -> dict[str, Rates]:
    """The rates that are kept for this machine, by question."""
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        kept = read_all().get(machine(), {})
        return {question: {n: float(rate) for n, rate in found.items()} for question, found in kept.items() if found}
    return {}


def read_all() -> dict[str, Any]:
    """The content of the cache file; nothing where it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads((user_cache() / "probe.json").read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def machine() -> str:
    """What rates depend on: the processor, the instructions that torch uses, and its version."""
    return f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def processor() -> str:
    """The name of the CPU, as far as the system tells it."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()

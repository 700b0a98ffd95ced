"""Measuring points in processes of their own, and judging the law that they should follow."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.common import Table, Worker
from benchmarks.scaling.workers import Settings


def measure(name: str, points: Sequence[Settings], turns: int) -> list[list[dict[str, Any]]]:
    """The reports of every point, one of each turn; memory is counted from before the model was made."""
    workers: list[Worker] = []
    try:
        with ThreadPoolExecutor(2) as pool:
            arguments = [["benchmarks.scaling", name, "--settings", json.dumps(point)] for point in points]
            workers.extend(pool.map(lambda words: Worker(*words), arguments))
        rounds = [[worker() for worker in workers] for _ in range(turns)]
        for worker, reports in zip(workers, zip(*rounds, strict=True), strict=True):
            for report in reports:
                report["memory"] = report["rss"] - worker.ready["before"]
    finally:
        for worker in workers:
            worker.stop()
    return [list(reports) for reports in zip(*rounds, strict=True)]


def least(points: list[list[dict[str, Any]]], what: str) -> list[float]:
    """The smallest of each point."""
    return [min(report[what] for report in reports) for reports in points]


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """The line through some points: its value at 0, its slope, and R²."""
    slope, start = np.polyfit(x, y, 1)
    rest = np.asarray(y) - (start + slope * np.asarray(x))
    return float(start), float(slope), float(1 - rest.var() / np.var(y))


def growth(values: Sequence[float]) -> float:
    """The largest factor from one value to the next."""
    return max(after / max(before, 1) for before, after in pairwise(values))


def spread(values: Sequence[float]) -> float:
    """The largest over the smallest."""
    return max(values) / min(values)


def judge(table: Table, law: str, value: float, bound: float, at_least: bool = False, **points: Any) -> None:
    """A row: does the law hold? The bound is an upper one, unless `at_least`."""
    held = value >= bound if at_least else value <= bound
    table.row(law, value, f"{'>=' if at_least else '<='} {bound:g}", "yes" if held else "no", **points)

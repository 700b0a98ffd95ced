"""Fault injection: what becomes of runs that are killed, signalled, out of disk space, corrupted or mistyped.

    python -m benchmarks.reliability [--only NAME …] [--tiny]

Every case is a real process (see `benchmarks.reliability.runs`) with its own seed, so that it can be reproduced. A row
of the table, one for each of the figures F1 to F18, counts the cases that ended as promised; those that did not are
printed below it with their numbers. Takes half an hour on two cores. The cases with folders that are not writable have
to change the user of a process, so they are left out unless run as root.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.common import Table, machine, parser
from benchmarks.reliability.corruption import corrupted, corrupted_copy, unsafe
from benchmarks.reliability.costs import config_errors, save_cost
from benchmarks.reliability.interruptions import (
    combination,
    crashed,
    crashed_at,
    cut_off,
    disk_full,
    killed,
    same_twice,
    signalled,
)
from benchmarks.reliability.lightning_checkpoints import compare
from benchmarks.reliability.refusals import diverged, mistyped, unwritable
from benchmarks.reliability.runs import CRASH, TINY, Bench, Run, preload


class Row(NamedTuple):
    """A row of the table: a function that returns a Verdict (or a Verdict and seconds), and its arguments by case."""

    name: str
    title: str
    function: Callable[..., Any]
    cases: Sequence[tuple[Any, ...]]


def suite(bench: Bench, tiny: bool) -> Iterator[Row]:
    """All rows; with `tiny`, a few cases of each."""
    source = bench.folder / "source" / "run"
    run = Run(source.parent, *CRASH, "run_dir=run")
    assert run.wait() == 0, run.stderr
    counted = bench.folder / "operations"
    Run(bench.folder / "count", *CRASH, "run_dir=run", before=partial(crashed_at, 0, False, counted)).wait()
    operations = range(1, int(counted.read_text()) + 1)
    size = (source / "checkpoints" / "last.ckpt").stat().st_size
    places = [(size * (i + 1) // 22, save) for save in (1, 3) for i in range(20)]  # bytes, and the number of the save

    def seeds(few: int, many: int) -> range:
        return range(few if tiny else many)

    def some(cases: Sequence[Any]) -> Sequence[Any]:
        return cases[len(cases) // 2 :][:1] if tiny else cases

    crashes = [(bench, n, after) for n in some(operations) for after in (False, True)]
    cuts = [(bench, *place) for place in some(places)]
    root = os.geteuid() == 0

    def signals(name: str) -> list[tuple[Any, ...]]:
        return [(bench, name, n) for n in seeds(1, 50)]

    def numbered(few: int, many: int, where: Any = bench) -> list[tuple[Any, ...]]:
        return [(where, n) for n in seeds(few, many)]

    yield Row("kills", "F1 SIGKILL at random times, to the same bits", killed, numbered(1, 200))
    yield Row("crashes", "F2 SIGKILL before and after every operation of a save", crashed, crashes)
    yield Row("cuts", "F2 killed within a write, at a byte", cut_off, cuts)
    matrix = "F3 resume matrix: data, optimizer, precision, accumulation, moment"
    yield Row("matrix", matrix, combination, numbered(4, 128))
    yield Row("terms", "F4 SIGTERM", signalled, signals("SIGTERM"))
    yield Row("ints", "F4 SIGINT", signalled, signals("SIGINT"))
    yield Row("hups", "F4 SIGHUP", signalled, signals("SIGHUP"))
    yield Row("damage", "F5 corrupted files in a run", corrupted, numbered(5, 500, source))
    yield Row("copies", "F5 flipped bits in a copied file", corrupted_copy, numbered(5, 500, source))
    yield Row("unsafe", "F5 files that hold code", unsafe, numbered(3, 18, source))
    yield Row("fuzz", "F6 mistyped command lines", mistyped, numbered(4, 2000))
    yield Row("full", "F8 disk full at a byte of a save", disk_full, cuts)
    yield Row("unwritable", "F9 run folders that are not writable", unwritable, numbered(2, 10) if root else [])
    yield Row("poison", "F12 a loss or gradient that is not finite", diverged, numbered(2, 20))
    yield Row("twice", "F13 two runs of one command, equal", same_twice, numbered(1, 10))


def show(row: Row, results: Sequence[Any], table: Table) -> bool:
    """Add a row to the table, with its failures below it; whether all cases ended as promised."""
    more = ""
    if isinstance(results[0], tuple):
        times = [seconds for _, seconds in results]
        results = [wrong for wrong, _ in results]
        more = f", stopped within {median(times):.2f} s ({max(times):.2f} at most)"
    wrong = [(number, text) for number, text in enumerate(results) if text]
    table.row(row.title, len(results), f"{len(results) - len(wrong)}{more}", failures=wrong)
    for number, text in wrong[:20]:
        print(f"| case {number} | | {text[:300]} |", flush=True)
    return not wrong


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--only", nargs="+", metavar="NAME")
    options = options_parser.parse_args()
    print(machine())
    preload()
    with tempfile.TemporaryDirectory(prefix="reliability", ignore_cleanup_errors=True) as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        bench = Bench(Path(folder))
        bench.reference(TINY)
        bench.reference(CRASH)
        held = True
        table = Table(options, "reliability", "figure", "cases", "as promised")
        rows = [row for row in suite(bench, options.tiny) if not options.only or row.name in options.only]
        with get_context("fork").Pool(2) as pool:
            for row in rows:
                if row.cases:
                    held &= show(row, pool.starmap(row.function, row.cases, chunksize=1), table)
                else:
                    table.row(row.title, 0, "left out: needs root")
    for name, measure in {"cost": save_cost, "errors": config_errors, "lightning": compare}.items():
        if not options.only or name in options.only:
            measure(options, table)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()

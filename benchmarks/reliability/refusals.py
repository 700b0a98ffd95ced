"""What must be refused: a loss that is not finite, a folder that is not writable, a mistyped command (F6, F9, F12)."""

import importlib
import itertools
import os
import random
import resource
import shutil
from typing import Any

from benchmarks.reliability.command_lines import command_line
from benchmarks.reliability.runs import TINY, Bench, Run, Verdict, good_file, last_line


def diverged(bench: Bench, number: int) -> Verdict:
    """A loss or a gradient that is not finite (F12)."""
    from mingpt_lightning import LanguageModel

    rng, place = random.Random(number), bench.folder / f"poison_{number}"
    batch, poison = rng.randrange(0, 100), rng.choice([float("nan"), float("inf")])
    kind = rng.choice(["loss", "gradient"])

    def before() -> None:
        real, calls = LanguageModel.loss_sum, itertools.count()

        def loss_sum(self: Any, *arguments: Any) -> Any:
            total, tokens = real(self, *arguments)
            if next(calls) == batch:
                if kind == "loss":
                    total = total * poison
                else:
                    total.register_hook(lambda gradient: gradient * poison)
            return total, tokens

        LanguageModel.loss_sum = loss_sum  # type: ignore[method-assign]

    run = Run(place, *TINY, "run_dir=run", before=before)
    if (code := run.wait()) != 5:
        return f"ended with {code} instead of 5: {last_line(run.stderr)}"
    if f"at step {batch // 2 + 1}," not in last_line(run.stderr) or "learning rate" not in last_line(run.stderr):
        return f"said {last_line(run.stderr)}"
    if batch // 2 >= 5 and "last.ckpt" not in last_line(run.stderr):
        return f"did not name the last good file: {last_line(run.stderr)}"
    return good_file(place) or bench.finish(place, TINY)


def unwritable(bench: Bench, number: int) -> Verdict:
    """A folder that this user may not write to: reported before the first step (F9)."""
    place = bench.folder / f"unwritable_{number}"
    run_dir = place / "run" if number % 2 else place / "run" / "deeper"
    run_dir.mkdir(parents=True)
    place.chmod(0o777)
    (place / "run").chmod(0o555)
    run_dir.chmod(0o555)

    def before() -> None:
        main = importlib.import_module("mingpt_lightning.cli.main")
        real = main.check_config

        def check_config(cfg: Any) -> None:
            real(cfg)
            os.seteuid(65534)  # nobody; only from here on, because nobody may be unable to read Python's files

        main.check_config = check_config

    run = Run(place, *TINY, f"run_dir={run_dir}", before=before)
    code = run.wait()
    if code != 2 or not last_line(run.stderr).startswith("error: cannot write "):
        return f"ended with {code}: {last_line(run.stderr)}"
    return "" if not list(run_dir.iterdir()) and "GPT of" not in run.stderr else "something was done before"


def mistyped(bench: Bench, number: int) -> Verdict:
    """A command line from the grammar of `benchmarks.reliability.command_lines` (F6)."""
    arguments = command_line(random.Random(number))
    place = bench.folder / f"fuzz_{number}"

    def before() -> None:
        limit = 8 * 2**30  # a model that is too large must be refused as well
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    run = Run(place, *arguments, before=before)
    code = run.wait(30)
    said = run.stderr
    shutil.rmtree(place, ignore_errors=True)
    if code not in (0, 2, 3, 4, 5) or "Traceback" in said:
        return f"{' '.join(arguments)}: {code}: {last_line(said)}"
    if code and not any(line.startswith("error: ") for line in said.splitlines()):
        return f"{' '.join(arguments)}: said {last_line(said)}"
    return ""

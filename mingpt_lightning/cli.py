"""The command line: Hydra composes a config, a task runs, and a mistake ends in one line.

Nothing heavy is imported before the config is known to be good.
"""

import contextlib
import csv
import os
import re
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mingpt_lightning.config import CONFIG_DIR, check, explain
from mingpt_lightning.errors import UserError, nearest, resource_error
from mingpt_lightning.signals import STOP, Stopped, requeue

TEXT_KEYS = ("prompt", "prompt_file", "stop", "checkpoint", "output", "run_dir", "datamodule.path", "model.name")
"""Keys whose values are taken as typed, whatever commas, quotes or equals signs they have."""

LIST_KEYS = ("stop", "datamodule.path")
"""Those of them that may also be a list, in brackets."""


SPIN_COUNT = "1000"
"""How often a thread looks for work before it sleeps. By default threads spin for milliseconds, and where anything else
runs on the machine, they keep each other from working: a step of a small model then took up to ten times as long."""

FAILED: dict[int, UserError] = {}
"""The jobs of a sweep that ended in a user's mistake; the others go on."""

NOISE = (
    ".*LeafSpec.*",  # Lightning 2.6 with torch 2.13
    "The number of training batches",  # that log_every_n_steps is more than an epoch does no harm
)


def main() -> None:
    """The entry point of `main.py` and of the console script."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of being shortened
    if "OMP_WAIT_POLICY" not in os.environ:  # before torch is imported, or it has no effect
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the parent
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    sweep = [argument for argument in sys.argv[1:] if argument in ("-m", "--multirun")]
    rest = [argument for argument in sys.argv[1:] if argument not in sweep]
    overrides = [argument for argument in rest if not argument.startswith("-")]
    refuse_options(rest)
    sys.argv[1:] = sweep + (rest if sweep else [quoted(argument) for argument in rest])
    FAILED.clear()
    run.started, run.since = False, time.time() - 0.1
    STOP.install()
    try:
        run()
    except (Stopped, Exception) as error:
        if STOP.received is not None:  # what a signal interrupts may make an error of its own of it
            requeue(STOP.received)
            print(f"stopped by {signal.Signals(STOP.received).name}", file=sys.stderr)
            raise Stopped(STOP.received) from None
        if run.started:
            raise  # a bug of ours
        fail(explain(cast(Exception, error), overrides))
    finally:
        STOP.restore()
    if FAILED:
        sys.exit(max(error.code for error in FAILED.values()))


def refuse_options(arguments: list[str]) -> None:
    """End with a line about an option that Hydra doesn't know, and one that would run code from a file or a name."""
    parser = get_args_parser()
    known = set(parser._option_string_actions)
    for argument in arguments:
        option, _, value = argument.partition("=")
        if option.startswith("-") and option not in known:
            fail(UserError(f"unknown option {option}", "command line", nearest(option, known)))
        if option == "--experimental-rerun":
            fail(UserError(f"{option} is not possible", "command line", "It would run code from a file."))
        key = option.lstrip("+~")
        hydras_own = value.startswith(("hydra", "mingpt_lightning"))
        if key.startswith("hydra.") and key.endswith("_target_") and not hydras_own:
            fail(UserError(f"{value} is not allowed", key, "Hydra's own classes and ours are."))
    if "--version" not in arguments:
        parser.error = lambda message: fail(UserError(message, "command line", "See python main.py --help."))  # type: ignore[method-assign]
        parser.parse_args(arguments)


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="config")
def run(cfg: DictConfig) -> float | None:
    """Run the task of a composed config; returns what a sweep compares."""
    run.started = True
    try:
        check(cfg)
        with lean_imports():
            from mingpt_lightning.tasks import TASKS

        with warnings.catch_warnings():
            for message in NOISE:
                warnings.filterwarnings("ignore", message=message)
            if str(cfg.task) not in TASKS:
                raise UserError(f"task={cfg.task} is not a task", "task", nearest(str(cfg.task), TASKS))
            return TASKS[cfg.task](cfg)
    except Exception as failure:
        error = failure if isinstance(failure, UserError) else resource_error(failure)
        if isinstance(failure, OmegaConfBaseException):  # an interpolation that leads nowhere
            error = explain(failure, [])
        if error is None or STOP.received is not None:
            raise
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            discard_empty_run(Path(HydraConfig.get().runtime.output_dir))
            fail(error)
        FAILED[HydraConfig.get().job.num] = error
        say(error)
        return None


@contextlib.contextmanager
def lean_imports() -> Iterator[None]:
    """Let torchmetrics, which Lightning imports, leave out what only metrics of its own need: a second of start-up.

    It asks for these packages through Lightning's RequirementCache; nobody else is answered differently afterwards.
    """
    from lightning_utilities.core.imports import RequirementCache

    real = RequirementCache.__bool__

    def lean(cache: RequirementCache) -> bool:
        return not str(cache.requirement).startswith(("transformers", "matplotlib", "scipy")) and real(cache)

    RequirementCache.__bool__ = lean  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        RequirementCache.__bool__ = real  # type: ignore[method-assign]


def discard_empty_run(folder: Path) -> None:
    """A mistake leaves no folder behind: remove the run's, if there is no file in it but a copy of the config."""
    config = folder / ".hydra"
    with contextlib.suppress(OSError):
        if folder == Path.cwd() or any(path.is_file() for path in folder.rglob("*") if path.parent != config):
            return
        if config.exists() or folder.stat().st_mtime >= run.since:  # an empty folder that was there before stays
            shutil.rmtree(folder)
            if folder.parent.parent.name == "runs":
                folder.parent.rmdir()
                folder.parent.parent.rmdir()


def say(error: UserError) -> None:
    """A mistake in one line."""
    with contextlib.suppress(OSError):  # nobody is there to read it
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


def fail(error: UserError) -> NoReturn:
    """Say it and leave with the code of the error."""
    say(error)
    sys.exit(error.code)


def quoted(argument: str) -> str:
    """An override of one of TEXT_KEYS in Hydra's quotes, anything else as it is."""
    key, equals, value = argument.partition("=")
    if not equals or key not in TEXT_KEYS or value in ("", "null") or re.fullmatch(r"(['\"]).*\1", value):
        return argument
    if key in LIST_KEYS and value.startswith("["):
        return argument
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value).replace("${", "\\${")
    return f"{key}='{escaped}'"


class SweepTable(Callback):
    """Writes a table of a sweep's jobs, `sweep.csv`, and prints it."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if job_return.hydra_cfg is None or job_return.hydra_cfg.hydra.mode != RunMode.MULTIRUN:
            return
        number = job_return.hydra_cfg.hydra.job.num
        result = f"failed: {FAILED[number]}" if number in FAILED else job_return._return_value
        overrides = {key: value for key, _, value in (item.partition("=") for item in job_return.overrides or [])}
        folder = os.path.relpath(job_return.hydra_cfg.hydra.runtime.output_dir)
        self.rows.append({"job": number, **overrides, str(config.optimized_metric): result, "run_dir": folder})

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        from rich.console import Console
        from rich.table import Table

        if not self.rows:
            return
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        file = Path(config.hydra.sweep.dir) / "sweep.csv"
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows(self.rows)
        table = Table(*names)
        for row in self.rows:
            values = [row.get(name, "") for name in names]
            table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in values))
        console = Console(stderr=True)
        console.print(table)
        console.print(f"sweep folder  {file.parent}", markup=False)

"""The entry point: Hydra composes a config, a task runs, and a mistake ends in one line.

Nothing heavy is imported before the config is known to be good.
"""

import contextlib
import logging
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mingpt_lightning.cli.config import CONFIG_DIR, check_config, explain, locate_anywhere, program
from mingpt_lightning.cli.help import page, version
from mingpt_lightning.cli.overrides import quoted, with_key, with_system_message
from mingpt_lightning.cli.own_settings import own_settings
from mingpt_lightning.cli.processes import check_sweep, is_first_process, of_rank, say_once, share_folder
from mingpt_lightning.cli.sweep import FAILED, Failure
from mingpt_lightning.cli.trust import DeclaredConfigs, declared_configs
from mingpt_lightning.console import console, fail, say
from mingpt_lightning.errors import UserError, nearest, resource_error
from mingpt_lightning.signals import STOP, Stopped, requeue

TASKS = {
    "fit": "fit",
    "validate": "evaluate",
    "test": "evaluate",
    "generate": "generate",
    "export": "export",
    "push": "push",
    "check": "check",
}
"""The tasks, and the modules of `cli/` whose `run_task(cfg, started)` does them."""

DISTRIBUTED = ("fit", "validate", "test")
"""The tasks that several processes do together; of others, rank 0 does all."""

SPIN_COUNT = "1000"
"""How often a thread polls for work before it sleeps. By default threads spin for milliseconds, and on a busy machine
they starve each other: a step of a small model then took up to ten times as long."""

NOISE = (
    ".*LeafSpec.*",  # Lightning 2.6 with torch 2.13
    "SWA is currently only supported every epoch",  # it replaces the schedule, which is by step
    "Checkpoint directory .* exists and is not empty",  # of a resumed run
    "Be aware that when using `ckpt_path`",  # that a callback was switched off is said as a changed setting
    "You are trying to `self.log",  # with barebones=true
    "The number of training batches",  # that log_every_n_steps is more than an epoch does no harm
)


@dataclass
class Process:
    """What this process knows of the command that it runs.

    since: when `main` began, so that folders that it created can be told from older ones. task_began: Hydra has
    composed a config. jobs: how many tasks it has run; a sweep has several.
    """

    since: float = 0.0
    task_began: bool = False
    jobs: int = 0


PROCESS = Process()


def main() -> None:
    """The entry point of `main.py`, `python -m mingpt_lightning` and the console script."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of being shortened
    if "OMP_WAIT_POLICY" not in os.environ:  # before torch is imported, or it has no effect
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the parent
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    logging.raiseExceptions = False  # a closed stream is no reason for a traceback
    with quiet_broken_pipe():
        arguments = sys.argv[1:]
        if "--help" in arguments or "-h" in arguments:
            print(page(arguments), end="")
        elif "--version" in arguments:
            print(version())
        else:
            run_command(arguments)


def run_command(arguments: list[str]) -> None:
    """Let Hydra compose the config and call `launch`, once or for each job of a sweep."""
    sweep = [argument for argument in arguments if argument in ("-m", "--multirun")]
    rest = [argument for argument in arguments if argument not in sweep]
    overrides, folder = refuse_options(rest)
    try:
        check_sweep(arguments)
        is_first_process()  # for what is wrong in the environment
    except UserError as error:
        fail(error)
    folders = [*folder, *map(str, declared_configs())]
    rest, overrides = with_system_message(rest, folders), with_system_message(overrides, folders)
    quotes = [quoted(item, bool(sweep), folders) if item in overrides else item for item in rest]
    Plugins.instance().register(DeclaredConfigs)
    FAILED.clear()
    PROCESS.task_began, PROCESS.since = False, time.time() - 0.1
    STOP.install()
    try:
        first = next((n for n, argument in enumerate(rest) if argument in overrides), len(rest))
        own = own_settings(rest)
        quotes += of_rank()
        while True:
            sys.argv[1:] = [*sweep, *quotes[:first], *own, *quotes[first:]]  # Hydra wants options first
            try:
                launch()
                break
            except HydraException as error:
                if PROCESS.task_began or (more := with_key(error, quotes)) is None:
                    raise
                quotes = more
    except (Stopped, Exception) as error:
        if isinstance(error, BrokenPipeError) and not PROCESS.task_began:
            raise  # the reader of Hydra's own output has left
        if STOP.received is not None:  # code that a signal interrupts may turn it into an error of its own
            if is_first_process():
                requeue(STOP.received)
                print(f"stopped by {signal.Signals(STOP.received).name}", file=sys.stderr)
            raise Stopped(STOP.received) from None
        if PROCESS.task_began:
            raise  # a bug of ours
        fail(explain(cast(Exception, error), [item for item in quotes if "=" in item]))
    finally:
        STOP.restore()
    if FAILED:
        sys.exit(max(failure.code for failure in FAILED.values()))


def refuse_options(arguments: list[str]) -> tuple[list[str], list[str]]:
    """End with a line about an option that Hydra doesn't know, and one that would run code from a file or a name.

    Returns the overrides among the arguments, and the folder of --config-dir.
    """
    parser = get_args_parser()
    known = set(parser._option_string_actions)
    for argument in arguments:
        option, _, value = argument.partition("=")
        if option.startswith("-") and option not in known:
            fail(UserError(f"unknown option {option}", "command line", nearest(option, known)))
        if option == "--experimental-rerun":
            fail(UserError(f"{option} is not possible", "command line", "It would run code from a file."))
        key = option.lstrip("+~")
        hydras_own = value.startswith(("hydra.", "hydra_plugins.", "mingpt_lightning."))
        if key.startswith("hydra.") and key.endswith("_target_") and not hydras_own:
            fail(UserError(f"{value} is not allowed", key, "Hydra's own classes and ours are."))
    usage = f"See {program()} --help."
    parser.error = lambda message: fail(UserError(message, "command line", usage))  # type: ignore[method-assign]
    found = parser.parse_args(arguments)
    return list(found.overrides), [found.config_dir] if found.config_dir else []


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="config")
def launch(cfg: DictConfig) -> float | None:
    """What Hydra calls, and a launcher may send to another process, where it would have globals of its own."""
    return run_job(cfg)


def run_job(cfg: DictConfig) -> float | None:
    """Run the task of a composed config; returns what a sweep compares."""
    first = PROCESS.jobs == 0
    PROCESS.task_began, PROCESS.jobs = True, PROCESS.jobs + 1
    started = time.perf_counter()
    try:
        check_config(cfg)
        if str(cfg.task) not in TASKS:
            raise UserError(f"task={cfg.task} is not a task", "task", nearest(str(cfg.task), TASKS))
        if cfg.task in DISTRIBUTED:
            share_folder(cfg)
        elif not is_first_process():
            return None
        console.quiet = not is_first_process()
        logging.getLogger("torch").setLevel(logging.WARNING)  # no news at the end of a process that was stopped early
        with lean_imports():
            task = import_module(f"mingpt_lightning.cli.{TASKS[cfg.task]}")
            if first:
                started = import_module("mingpt_lightning.cli.run").process_start()
        for name in ("pytorch_lightning", "lightning_fabric", "lightning", "matplotlib", "httpx", "httpx2"):
            logging.getLogger(name).setLevel(logging.WARNING)  # no tips, no news of fonts or requests
        logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)  # a report was asked for
        logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            for message in NOISE:
                warnings.filterwarnings("ignore", message=message)
            return task.run_task(cfg, started)
    except Exception as failure:
        error = failure if isinstance(failure, UserError) else resource_error(failure)
        if isinstance(failure, OmegaConfBaseException):  # an interpolation that leads nowhere
            error = explain(failure, [])
        if error is None or STOP.received is not None:
            raise
        error = locate_anywhere(error, cfg)
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            if is_first_process():
                discard_empty_run(Path(HydraConfig.get().runtime.output_dir))
            if not say_once(str(error)):
                sys.exit(error.code)
            fail(error)
        FAILED[HydraConfig.get().job.num] = Failure(error.code, str(error))
        say(error)
        return None


@contextlib.contextmanager
def quiet_broken_pipe() -> Iterator[None]:
    """End quietly when the reader of standard output, such as `| head`, has left, except within a task."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        if PROCESS.task_began:
            raise
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def lean_imports() -> Iterator[None]:
    """Keep torchmetrics, which Lightning imports, from importing packages for unused metrics: a second of start-up.

    It asks for these packages through Lightning's RequirementCache; other code gets the real answer.
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
        if config.exists() or folder.stat().st_mtime >= PROCESS.since:  # an empty folder that was there before stays
            shutil.rmtree(folder)
            if folder.parent.parent.name == "runs":
                folder.parent.rmdir()
                folder.parent.parent.rmdir()

"""task=fit: train, from the start or from where a run was stopped, and test the best checkpoint."""

import contextlib
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator

from omegaconf import DictConfig

from mingpt_lightning.averages import ends_with_averages
from mingpt_lightning.checkpoint import Checkpoint, read_checkpoint, why_it_ended
from mingpt_lightning.cli.complaints import complaints
from mingpt_lightning.cli.config import program
from mingpt_lightning.cli.limits import check_limits
from mingpt_lightning.cli.processes import is_first_process, one_job
from mingpt_lightning.cli.resume import continue_from, find_resumable
from mingpt_lightning.cli.run import Run, assemble, hyperparameters, run_folder, save_config
from mingpt_lightning.cli.summary import Result, describe, draw_curves, report, suggest, write_summary
from mingpt_lightning.cli.watch import watched
from mingpt_lightning.console import console
from mingpt_lightning.device import compile_pays
from mingpt_lightning.errors import UserError
from mingpt_lightning.files import lock
from mingpt_lightning.signals import Stopped
from mingpt_lightning.storage import find_checkpoint


def run_task(cfg: DictConfig, started: float) -> float | None:
    """Train; then test the best checkpoint on held-out data. Returns the metric that a sweep compares.

    started: when the run began, on the clock of time.perf_counter.
    """
    folder = run_folder()
    only = lock(folder, "run_dir") if is_first_process() else contextlib.nullcontext()
    with only, logging_ends_with_the_job(), one_job():
        resumed, notes = find_resumable(folder, cfg.resume)
        for note in notes:
            console.print(f"note: {note}", markup=False)
        run = assemble(cfg, resumed=resumed)
        run.system.started = started
        check_limits(run.trainer, run.datamodule, "train", "val", "test")
        if resumed is not None:
            continue_from(run, resumed)
        elif run.checkpoint is not None:
            console.print(f"weights     {run.checkpoint}, step {run.steps:,}", markup=False)
        describe(run, compile_if_asked(run))
        save_config(cfg, folder)
        if run.trainer.enable_autolog_hparams:
            for logger in run.trainer.loggers:
                logger.log_hyperparams(hyperparameters(cfg))
        with watched(run.trainer, folder, cfg.process_timeout):
            try:
                with complaints(run.trainer, cfg), contextlib.redirect_stdout(sys.stderr):
                    run.trainer.fit(run.system, datamodule=run.datamodule, ckpt_path=resumed, weights_only=True)
            except Stopped as stop:
                if run.system.tokens_seen and run.trainer.is_global_zero:
                    result = Result("fit", {}, run.trainer.global_step, None, signal.Signals(stop.number).name)
                    write_summary(run, result, folder / "summary.json")
                    say_how_to_resume(run)
                raise
            result = evaluate_best(run)
            if run.trainer.is_global_zero:
                write_summary(run, result, folder / "summary.json")
            report(run, result)  # in every process: it may take all of them to compute an example
        if run.trainer.is_global_zero:
            console.print(f"run folder  {folder}", markup=False)
            draw_curves(folder)
            if result.checkpoint is not None:
                suggest(run)
    return result.metrics.get(cfg.optimized_metric)


@contextlib.contextmanager
def logging_ends_with_the_job() -> Iterator[None]:
    """End what Weights & Biases would keep for the whole process: the next job of a sweep is a run of its own."""
    try:
        yield
    finally:
        if (wandb := sys.modules.get("wandb")) is not None and wandb.run is not None:
            wandb.finish()


def evaluate_best(run: Run) -> Result:
    """Validate the last weights, if they have not been; load the best ones, and test these."""
    trainer, system, data = run.trainer, run.system, run.datamodule
    metrics = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith(("train/", "val/"))}
    steps, checkpoint, ended = trainer.global_step, None, why_it_ended(trainer)
    averaged = ends_with_averages(trainer)
    if averaged or system.validated_step != steps:
        results = trainer.validate(system, datamodule=data, verbose=False)
        metrics |= results[0] if results else {}  # without limit_val_batches=0
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, Checkpoint):
            if averaged and callback.monitor in metrics:
                callback.save_if_best(trainer, {name: value for name, value in metrics.items() if name[:4] == "val/"})
            checkpoint = find_checkpoint(run.folder)
            if callback.best_metrics:
                trainer.strategy.load_model_state_dict(read_checkpoint(checkpoint, mmap=True))
                metrics |= callback.best_metrics
    if len(data.sequences("test")):
        results = trainer.test(system, datamodule=data, verbose=False)
        metrics |= results[0] if results else {}
    return Result("fit", metrics, steps, checkpoint, ended)


def compile_if_asked(run: Run) -> bool:
    """Compile the blocks where `compile` says so; returns whether it does."""
    device, width, steps = run.trainer.strategy.root_device, run.system.gpt.config["n_embd"], run.trainer.max_steps
    if not (compile_pays(device, width, steps) if run.cfg.compile == "auto" else run.cfg.compile):
        return False
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise UserError("torch.compile needs a C++ compiler", "compile", "Install g++, or use compile=false.")
    run.system.compile_blocks()
    return True


def say_how_to_resume(run: Run) -> None:
    """After a stop: what is saved, and the command that resumes the run."""
    if not any(isinstance(callback, Checkpoint) for callback in run.trainer.checkpoint_callbacks):
        console.print("stopped before the end; without callbacks.checkpoint nothing is saved")
        return
    console.print(f"stopped before the end; everything up to step {run.trainer.global_step:,} is saved")
    console.print(f"go on with  {program()} run_dir={shlex.quote(str(run.folder))} resume=auto", markup=False)

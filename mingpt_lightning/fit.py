"""task=fit: train, from the start or from where a run was stopped, and test what came of it."""

import contextlib
import os
import shlex
import shutil
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mingpt_lightning.build import (
    build,
    build_callbacks,
    build_each,
    build_trainer,
    is_first_process,
    plain,
    run_folder,
    save_config,
)
from mingpt_lightning.callbacks import console
from mingpt_lightning.checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from mingpt_lightning.datamodule import SequenceDataModule
from mingpt_lightning.device import compile_pays, keep_memory, set_threads
from mingpt_lightning.errors import CheckpointError, UserError
from mingpt_lightning.language_model import LanguageModel
from mingpt_lightning.resume import KEY, check_resumable, differences, find_resumable
from mingpt_lightning.signals import Stopped
from mingpt_lightning.storage import locked
from mingpt_lightning.summary import program, summarize, summary, write_summary


def fit(cfg: DictConfig) -> float | None:
    """Train, from the start or from where a run was stopped; then test the best checkpoint on data never seen."""
    started, run_dir = time.perf_counter(), run_folder()
    console.quiet = not is_first_process()
    with locked(run_dir) if is_first_process() else contextlib.nullcontext():
        resumed, notes = find_resumable(run_dir, cfg.resume)
        for note in notes:
            console.print(f"note: {note}", markup=False)
        pl.seed_everything(cfg.seed, verbose=False)
        datamodule: SequenceDataModule = build(cfg.datamodule, "datamodule")
        gpt = build(cfg.model, "model", vocab_size=datamodule.vocab_size, block_size=datamodule.block_size)
        optimizer, scheduler = build(cfg.optimizer, "optimizer"), build(cfg.scheduler, "scheduler")
        system = LanguageModel(gpt, optimizer, scheduler, datamodule.tokenizer, config=plain(cfg))
        loggers = build_each(cfg.logger, "logger")
        callbacks = build_callbacks(cfg.callbacks, system.metric_names(), logging=bool(loggers))
        trainer = build_trainer(cfg.trainer, gpt.config["n_embd"], callbacks=callbacks, logger=loggers or False)
        set_threads(gpt.config["n_embd"])
        keep_memory()
        if resumed is not None:
            say_differences(resumed, system, datamodule)
            set_aside(run_dir, resumed)
        elif cfg.checkpoint is not None:
            take_weights(system, find_checkpoint(cfg.checkpoint))
        check_batches(trainer, len(datamodule.train_dataloader()))
        system.make_optimizer()  # a mistake in its config is found before anything is written
        compiled = compile_if_asked(cfg, system, trainer)
        console.print(
            f"GPT of {gpt.n_parameters:,} parameters on {trainer.strategy.root_device}, {trainer.precision}, "
            f"{torch.get_num_threads()} threads{', compiled' if compiled else ''}"
        )
        save_config(cfg, run_dir)
        try:
            trainer.fit(system, datamodule=datamodule, ckpt_path=resumed, weights_only=True)
        except Stopped:
            if system.tokens_seen:
                write_summary(summary("fit", {}, trainer.global_step, None, started, system), run_dir)
                say_how_to_go_on(run_dir, callbacks, trainer.global_step)
            raise
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step  # also if there was nothing left to do
        return finish(cfg, system, datamodule, trainer, callbacks, started, run_dir)


def finish(
    cfg: DictConfig,
    system: LanguageModel,
    datamodule: SequenceDataModule,
    trainer: pl.Trainer,
    callbacks: list[pl.Callback],
    started: float,
    run_dir: Path,
) -> float | None:
    """Test the best weights of a training that is over, and write its summary."""
    metrics = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith(("train/", "val/"))}
    steps, checkpoint = trainer.global_step, None
    if system.validated_step != steps:
        results = trainer.validate(system, datamodule=datamodule, verbose=False)
        metrics |= results[0] if results else {}  # without limit_val_batches=0
    for keeper in (callback for callback in callbacks if isinstance(callback, Checkpoint)):
        checkpoint = find_checkpoint(run_dir)
        if keeper.best_metrics:  # the best weights are tested, and their metrics reported
            system.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
            metrics |= keeper.best_metrics
    if len(datamodule.dataset("test")):
        results = trainer.test(system, datamodule=datamodule, verbose=False)
        metrics |= results[0] if results else {}
    if trainer.is_global_zero:
        summarize("fit", metrics, steps, checkpoint, started, run_dir, system, datamodule)
    return metrics.get(cfg.optimized_metric)


def check_batches(trainer: pl.Trainer, batches: int) -> None:
    """Raise UserError for counts that don't fit into an epoch of so many batches, which Lightning would pass over."""
    window, interval = trainer.accumulate_grad_batches, trainer.val_check_interval
    if window > batches:
        what = f"trainer.accumulate_grad_batches={window:,} is more than the {batches:,} batches of an epoch"
        raise UserError(what, "trainer.accumulate_grad_batches", f"Use {batches:,} or less.")
    if trainer.check_val_every_n_epoch is not None and isinstance(interval, int) and interval > batches:
        what = f"trainer.val_check_interval={interval:,} is more than the {batches:,} batches of an epoch"
        fix = "Lower it, or count across epochs with trainer.check_val_every_n_epoch=null."
        raise UserError(what, "trainer.val_check_interval", fix)


def compile_if_asked(cfg: DictConfig, system: LanguageModel, trainer: pl.Trainer) -> bool:
    """Compile the blocks where `compile` says so; returns whether it does."""
    device, width = trainer.strategy.root_device, system.gpt.config["n_embd"]
    if not (compile_pays(device, width, trainer.max_steps) if cfg.compile == "auto" else cfg.compile):
        return False
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise UserError("torch.compile needs a C++ compiler", "compile", "Install g++, or use compile=false.")
    system.compile_blocks()
    return True


def say_differences(file: Path, system: LanguageModel, datamodule: SequenceDataModule) -> None:
    """Say what goes on, and in which way this run isn't the one of the checkpoint; raise where that would be wrong."""
    content = read_checkpoint(file)
    lines = check_resumable(content, system.about(datamodule), file)
    console.print(f"resuming    {file}, step {content['global_step']:,}", markup=False)
    for line in lines:
        console.print(f"changed     {line}", markup=False)


def set_aside(run_dir: Path, good: Path) -> None:
    """Rename a last.ckpt that is damaged, so that the good file before it isn't replaced by it."""
    last = run_dir / "checkpoints" / "last.ckpt"
    if last.exists() and good != last and is_first_process():
        last.replace(last.with_suffix(".ckpt.damaged"))


def take_weights(system: LanguageModel, file: Path) -> None:
    """Start from the weights of a checkpoint, whose model and vocabulary must be the same."""
    content = read_checkpoint(file)
    ours, theirs = system.about(None), content[KEY]
    lines = [f"{name}: {a} in the checkpoint, {b} now" for name, a, b in differences(theirs["gpt"], ours["gpt"])]
    lines = [line for line in lines if not line.startswith("dropout:")]
    if theirs["tokenizer"] != ours["tokenizer"]:
        lines.append("another vocabulary")
    if lines:
        what = f"the weights of {file} are of another model: {'; '.join(lines)}"
        raise CheckpointError(what, "checkpoint", "Give the model and data of its run.")
    system.load_state_dict(content["state_dict"])
    console.print(f"weights     {file}, step {content['global_step']:,}", markup=False)


def say_how_to_go_on(run_dir: Path, callbacks: list[pl.Callback], step: int) -> None:
    """After a stop: what is saved, and the command that goes on."""
    if not any(isinstance(callback, Checkpoint) for callback in callbacks):
        console.print("stopped before the end; without callbacks.checkpoint nothing is saved")
        return
    console.print(f"stopped before the end; everything up to step {step:,} is saved")
    given = [item for item in HydraConfig.get().overrides.task if not item.startswith(("run_dir=", "resume="))]
    command = shlex.join([*given, f"run_dir={run_dir}", "resume=auto"])
    console.print(f"go on with  {program()} {command}", markup=False)

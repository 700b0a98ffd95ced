"""What the command line can do: fit, validate, test, generate, export; one function each.

A task takes the composed config, does its work, and returns the number that a sweep compares (None if there is none).
"""

import contextlib
import json
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mingpt_lightning.build import (
    build,
    build_callbacks,
    build_datamodule,
    build_each,
    build_trainer,
    is_first_process,
    is_pretrained,
    plain,
    read_named,
    read_system,
    run_folder,
    save_config,
)
from mingpt_lightning.callbacks import console
from mingpt_lightning.checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from mingpt_lightning.datamodule import SequenceDataModule
from mingpt_lightning.device import compile_pays, keep_memory, set_threads
from mingpt_lightning.errors import CheckpointError, UserError
from mingpt_lightning.language_model import LanguageModel
from mingpt_lightning.prompts import generate
from mingpt_lightning.resume import KEY, check_resumable, differences, find_resumable
from mingpt_lightning.signals import Stopped
from mingpt_lightning.storage import locked, unwritable, write_text

for name in ("pytorch_lightning", "lightning_fabric", "lightning", "hydra.utils"):
    logging.getLogger(name).setLevel(logging.CRITICAL if name == "hydra.utils" else logging.WARNING)  # no tips


def fit(cfg: DictConfig) -> float | None:
    """Train, from the start or from where a run was stopped; then test the best checkpoint on data never seen."""
    started, run_dir = time.perf_counter(), run_folder()
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


def program() -> str:
    """How this program was called."""
    return "python main.py" if sys.argv[0].endswith("main.py") else Path(sys.argv[0]).name


def validate(cfg: DictConfig) -> float | None:
    """The validation metrics of a checkpoint."""
    return evaluate(cfg, "val")


def test(cfg: DictConfig) -> float | None:
    """The test metrics of a checkpoint."""
    return evaluate(cfg, "test")


def evaluate(cfg: DictConfig, split: str) -> float | None:
    """The metrics of a checkpoint on one split of its own data, or of the data that the command line names."""
    started, run_dir = time.perf_counter(), run_folder()
    if cfg.checkpoint is None and is_pretrained(cfg.model):
        path, steps = None, 0
        datamodule: SequenceDataModule = build(cfg.datamodule, "datamodule")
        gpt = build(cfg.model, "model", vocab_size=datamodule.vocab_size, block_size=datamodule.block_size)
        system = LanguageModel(gpt, tokenizer=datamodule.tokenizer).eval()
    else:
        path, content = read_named(cfg)
        steps = content["global_step"]
        datamodule = build_datamodule(content)
        system = LanguageModel.from_checkpoint(content)
    gpt = system.gpt.config
    if (datamodule.vocab_size, datamodule.block_size) != (gpt["vocab_size"], gpt["block_size"]):
        what = f"the data has vocab_size={datamodule.vocab_size} and block_size={datamodule.block_size}, "
        what += f"the checkpoint {gpt['vocab_size']} and {gpt['block_size']}"
        raise CheckpointError(what, "datamodule", "Leave out datamodule= to take the run's own data.")
    trainer = build_trainer(cfg.trainer, gpt["n_embd"], callbacks=[], logger=False)
    run = trainer.validate if split == "val" else trainer.test
    save_config(cfg, run_dir)
    metrics = dict(run(system, datamodule=datamodule, verbose=False)[0])
    task = "validate" if split == "val" else "test"
    summarize(task, metrics, steps, path, started, run_dir, system, datamodule)
    return metrics.get(f"{split}/loss")


def export(cfg: DictConfig) -> None:
    """A folder that transformers and `GPT.from_pretrained` load."""
    if cfg.output is None:
        raise UserError("task=export needs a folder to write", "output", "Give output=FOLDER.")
    folder = Path(cfg.output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder", "output", "Choose another output=.")
    system = read_system(cfg)
    system.gpt.save_pretrained(folder, system.tokenizer)
    console.print(f"exported    {folder}", markup=False)


TASKS: dict[str, Callable[[DictConfig], float | None]] = {
    "fit": fit,
    "validate": validate,
    "test": test,
    "generate": generate,
    "export": export,
}


def summary(
    task: str, metrics: dict[str, float], steps: int, checkpoint: Path | None, started: float, system: LanguageModel
) -> dict[str, Any]:
    """What summary.json says."""
    return {
        "task": task,
        "metrics": metrics,
        "steps": steps,
        "tokens": system.tokens_seen,
        "seconds": round(time.perf_counter() - started, 2),
        "parameters": system.gpt.n_parameters,
        "checkpoint": checkpoint and str(checkpoint),
    }


def write_summary(content: dict[str, Any], run_dir: Path) -> None:
    """Write summary.json."""
    try:
        write_text(run_dir / "summary.json", json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise unwritable(run_dir / "summary.json", error) from error


def summarize(
    task: str,
    metrics: dict[str, float],
    steps: int,
    checkpoint: Path | None,
    started: float,
    run_dir: Path,
    system: LanguageModel,
    datamodule: SequenceDataModule,
) -> None:
    """Write summary.json, and say the same to people."""
    content = summary(task, metrics, steps, checkpoint, started, system)
    write_summary(content, run_dir)
    tokenizer = datamodule.tokenizer
    console.print()
    split = "test" if "test/loss" in metrics else "val"
    if f"{split}/exact_match" in metrics:
        dataset = datamodule.dataset(split)  # type: ignore[arg-type]
        results = system.solve(dataset[torch.arange(min(len(dataset), 1000))])
        console.print(f"{split} exact match  {metrics[f'{split}/exact_match']:.1%}", style="bold")
        for name, kind in (("right", True), ("wrong", False)):
            texts = [text for text, right in results if right == kind][:3]
            if texts:
                console.print(f"  {name}  {'   '.join(texts)}", markup=False)
    for name in ("val/loss", "test/loss"):
        if name in metrics:
            units = {unit: metrics.get(name.replace("loss", f"bits_per_{unit}")) for unit in ("character", "byte")}
            extra = "".join(f"  ({bits:.4f} bits per {unit})" for unit, bits in units.items() if bits is not None)
            console.print(f"{name}  {metrics[name]:.4f}{extra}")
    console.print(f"{steps:,} steps, {system.tokens_seen:,} tokens, {content['seconds']:.1f} seconds")
    console.print(f"run folder  {run_dir}", markup=False)
    if task == "fit" and checkpoint is not None:
        command = f"{program()} task=generate checkpoint={shlex.quote(str(run_dir))}"
        if tokenizer.answer_length is not None:
            inputs, _ = datamodule.dataset("val")[torch.arange(1)]
            prompt = tokenizer.decode(inputs[0, : 1 - tokenizer.answer_length].tolist()).strip(" =->")
            command += f' prompt="{prompt}"'
        console.print(f"try it      {command}", markup=False)

"""What the command line can do: fit, validate, test, generate, export; one function each.

A task takes the composed config, does its work, and returns the number that a sweep compares (None if there is none).
"""

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
from omegaconf import DictConfig

from mingpt_lightning.build import (
    build,
    build_callbacks,
    build_datamodule,
    build_each,
    build_trainer,
    is_pretrained,
    plain,
    read_named,
    read_system,
    run_folder,
)
from mingpt_lightning.callbacks import StopOnSignal, console
from mingpt_lightning.checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from mingpt_lightning.datamodule import SequenceDataModule
from mingpt_lightning.device import compile_pays, keep_memory, set_threads
from mingpt_lightning.errors import CheckpointError, UserError
from mingpt_lightning.language_model import LanguageModel
from mingpt_lightning.prompts import generate

for name in ("pytorch_lightning", "lightning_fabric", "lightning"):
    logging.getLogger(name).setLevel(logging.WARNING)  # no tips


def fit(cfg: DictConfig) -> float | None:
    """Train, then test the best checkpoint on data that nothing was chosen by."""
    started, run_dir = time.perf_counter(), run_folder()
    if any(run_dir.glob("checkpoints/*.ckpt")):
        raise UserError(f"{run_dir} already holds a run", "run_dir", "Choose another run_dir=.")
    pl.seed_everything(cfg.seed, verbose=False)
    datamodule: SequenceDataModule = build(cfg.datamodule, "datamodule")
    gpt = build(cfg.model, "model", vocab_size=datamodule.vocab_size, block_size=datamodule.block_size)
    optimizer, scheduler = build(cfg.optimizer, "optimizer"), build(cfg.scheduler, "scheduler")
    system = LanguageModel(gpt, optimizer, scheduler, datamodule.tokenizer, config=plain(cfg))
    loggers = build_each(cfg.logger, "logger")
    callbacks = build_callbacks(cfg.callbacks, system.metric_names(), logging=bool(loggers))
    stop = StopOnSignal()
    trainer = build_trainer(cfg.trainer, gpt.config["n_embd"], callbacks=[*callbacks, stop], logger=loggers or False)
    set_threads(gpt.config["n_embd"])
    keep_memory()
    device, compiled = trainer.strategy.root_device, cfg.compile
    if compiled == "auto":
        compiled = compile_pays(device, gpt.config["n_embd"], trainer.max_steps)
    if compiled:
        if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
            raise UserError("torch.compile needs a C++ compiler", "compile", "Install g++, or use compile=false.")
        system.compile_blocks()
    console.print(
        f"GPT of {gpt.n_parameters:,} parameters on {device}, {trainer.precision}, "
        f"{torch.get_num_threads()} threads{', compiled' if compiled else ''}"
    )
    trainer.fit(system, datamodule=datamodule)

    metrics = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith(("train/", "val/"))}
    steps, checkpoint = trainer.global_step, None
    if stop.received is None and system.validated_step != steps:
        metrics |= trainer.validate(system, datamodule=datamodule, verbose=False)[0]
    for keeper in (callback for callback in callbacks if isinstance(callback, Checkpoint)):
        checkpoint = find_checkpoint(run_dir)
        if keeper.best_metrics:  # the best weights are tested, and their metrics reported
            system.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
            metrics |= keeper.best_metrics
    if stop.received is None and len(datamodule.dataset("test")):
        metrics |= trainer.test(system, datamodule=datamodule, verbose=False)[0]
    summarize("fit", metrics, steps, checkpoint, started, run_dir, system, datamodule)
    if stop.received is not None:
        console.print("stopped before the end; everything so far is saved")
        raise SystemExit(128 + stop.received)
    return metrics.get(cfg.optimized_metric)


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
    summary: dict[str, Any] = {
        "task": task,
        "metrics": metrics,
        "steps": steps,
        "tokens": system.tokens_seen,
        "seconds": round(time.perf_counter() - started, 2),
        "parameters": system.gpt.n_parameters,
        "checkpoint": checkpoint and str(checkpoint),
    }
    (run_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")

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
    console.print(f"{steps:,} steps, {system.tokens_seen:,} tokens, {summary['seconds']:.1f} seconds")
    console.print(f"run folder  {run_dir}", markup=False)
    if task == "fit" and checkpoint is not None:
        program = "python main.py" if sys.argv[0].endswith("main.py") else Path(sys.argv[0]).name
        command = f"{program} task=generate checkpoint={shlex.quote(str(run_dir))}"
        if tokenizer.answer_length is not None:
            inputs, _ = datamodule.dataset("val")[torch.arange(1)]
            prompt = tokenizer.decode(inputs[0, : 1 - tokenizer.answer_length].tolist()).strip(" =->")
            command += f' prompt="{prompt}"'
        console.print(f"try it      {command}", markup=False)

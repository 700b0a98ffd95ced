"""What the command line can do: fit, validate, test, generate, export, check; one function each.

A task takes the composed config, does its work, and returns the number that a sweep compares (None if there is none).
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from mingpt_lightning.build import (
    build,
    build_datamodule,
    build_trainer,
    is_pretrained,
    read_named,
    read_system,
    run_folder,
    save_config,
)
from mingpt_lightning.callbacks import console
from mingpt_lightning.check import check
from mingpt_lightning.datamodule import SequenceDataModule
from mingpt_lightning.errors import CheckpointError, UserError
from mingpt_lightning.fit import fit
from mingpt_lightning.language_model import LanguageModel
from mingpt_lightning.prompts import generate
from mingpt_lightning.summary import summarize

for name in ("pytorch_lightning", "lightning_fabric", "lightning", "hydra.utils"):
    logging.getLogger(name).setLevel(logging.CRITICAL if name == "hydra.utils" else logging.WARNING)  # no tips


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
    "check": check,
}

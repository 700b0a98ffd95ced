"""Going on with a run as if it had never stopped, or saying why not.

The order of the data and all randomness are functions of (seed, how much was trained), so a checkpoint has to hold
weights, optimizer and counters only. Lightning's counters depend on the hook in which they are saved, and some of these
lose a validation or a step on loading; so they are always written as at the end of a batch (`at_batch_end`).
"""

import math
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from mingpt_lightning.errors import CheckpointError, UserError
from mingpt_lightning.storage import damage

KEY = "mingpt_lightning"
"""Where our part of a checkpoint is."""

FREE = ("datamodule.batch_size", "datamodule.cache_dir")
"""Settings that may change though they are in FIXED sections: the order of the data doesn't depend on them."""

FIXED = ("model", "datamodule", "optimizer", "scheduler", "seed", "optimized_metric", "choices.datamodule")
"""Sections in which another setting would make the result neither the old run's nor the new one's."""

SILENT = (
    "task",
    "resume",
    "run_dir",
    "checkpoint",
    "choices",
    "trainer.default_root_dir",
    "callbacks.checkpoint.dirpath",
)
"""Settings that say nothing about the result, or only what another one says too."""


def at_batch_end(loops: dict[str, Any], trainer: pl.Trainer) -> None:
    """Make the state of Lightning's fit loop the one that it has at the end of the newest batch, in every hook.

    It's computed from two numbers: how many batches were trained and how many an epoch has. Before the end of the
    batch's hooks, Lightning doesn't count it as completed, nor its epoch as processed.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    batches: int = epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
    length = trainer.num_training_batches
    epochs = 0 if math.isinf(length) else max(0, batches - 1) // int(length)

    def count(n: int) -> dict[str, int]:
        return {"ready": n, "started": n, "processed": n, "completed": n - 1}

    current = batches - epochs * (0 if math.isinf(length) else int(length))
    epoch = {"ready": epochs + 1, "started": epochs + 1, "processed": epochs, "completed": epochs}
    zero = dict.fromkeys(("ready", "started", "processed", "completed"), 0)
    loops["epoch_loop.batch_progress"] = {
        "total": count(batches),
        "current": count(current),
        "is_last_batch": current == length,
    }
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = trainer.global_step - 1
    loops["epoch_loop.val_loop.batch_progress"] = {"total": zero, "current": dict(zero), "is_last_batch": False}
    loops["epoch_progress"] = {"total": epoch, "current": dict(epoch)}


def validation_is_due(trainer: pl.Trainer) -> bool:
    """Whether a validation comes after the batch that has just been trained, or is under way."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def environment() -> dict[str, str]:
    """What the last bits of a result depend on beside the config."""
    return {
        "torch": str(torch.__version__),
        "pytorch_lightning": pl.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "processor": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }


def find_resumable(run_dir: Path, resume: str) -> tuple[Path | None, list[str]]:
    """The newest good checkpoint of a run to go on with, and what the user should know about those that aren't good.

    resume: auto goes on where there is something, must insists on it, never refuses a folder with a run in it.
    Raises CheckpointError where there are checkpoints and none of them is good, or "must" finds nothing; UserError
    where "never" finds a run.
    """
    files = [run_dir / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt")]
    there = [file for file in files if file.exists()]
    if resume == "never":
        if any(run_dir.glob("checkpoints/*.ckpt")):
            fix = "Go on with it by resume=auto, or choose another run_dir=."
            raise UserError(f"{run_dir} already holds a run", "run_dir", fix)
        return None, []
    notes: list[str] = []
    for file in there:
        wrong = damage(file)
        if wrong is None:
            return file, notes
        notes.append(f"{file} is damaged: {wrong}")
    if there:
        fix = "Train anew with another run_dir=; checkpoint=FILE starts from the weights of another file."
        raise CheckpointError("; ".join(notes), "resume", fix)
    if resume == "must":
        best = run_dir / "checkpoints" / "best.ckpt"
        found = f"only weights, {best}" if best.exists() else "no checkpoints/last.ckpt"
        fix = f"Start from them with checkpoint={best} and another run_dir=." if best.exists() else "Check run_dir=."
        raise CheckpointError(f"there is nothing to resume in {run_dir}: {found}", "resume", fix)
    return None, []


def check_resumable(content: dict[str, Any], now: dict[str, Any], file: Path) -> list[str]:
    """The differences between a checkpoint's run and this one that are worth a line.

    content: the checkpoint. now: what this run would put under KEY. Raises CheckpointError for a difference that would
    make the result wrong, and for a file with weights only.
    """
    if "optimizer_states" not in content:
        fix = f"Use them as initial weights of a new run: checkpoint={file} with another run_dir=."
        raise CheckpointError(f"{file} holds weights only", "resume", fix)
    saved = content[KEY]
    if "environment" not in saved:
        what = f"{file} was written by version {saved.get('version')}, which could not be resumed"
        raise CheckpointError(what, "resume", f"Start a new run from its weights: checkpoint={file}.")
    before, after = flat(saved["config"]), flat(now["config"])
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name) and not below(name, SILENT)]
    lines = {name: f"{name}: {before.get(name)} in the checkpoint, {after.get(name)} now" for name in changed}
    for name, before_it, after_it in differences(saved["gpt"], now["gpt"]):
        if f"model.{name}" not in lines:
            lines[f"model.{name}"] = f"{name}: {before_it} in the checkpoint, {after_it} now"
    if saved["tokenizer"] != now["tokenizer"]:
        lines["datamodule.tokenizer"] = "another vocabulary"
    if saved["data"] != now["data"]:
        lines["datamodule.data"] = "other data: its fingerprint has changed"
    wrong = [line for name, line in lines.items() if below(name, FIXED) and name not in FREE]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        what = f"{file} is of another run: {'; '.join(wrong[:4])}{more}"
        fix = f"Give the run's own settings, or start a new run from its weights: checkpoint={file} run_dir=NEW."
        raise CheckpointError(what, "resume", fix)
    versions = {"mingpt_lightning": saved["version"], **saved["environment"]}
    versions_now = {"mingpt_lightning": now["version"], **now["environment"]}
    for name, before_it, after_it in differences(versions, versions_now):
        lines[name] = f"{name}: {before_it} in the checkpoint, {after_it} now; the last bits may differ"
    return list(lines.values())


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """The keys at which two mappings differ, with both values."""
    return [(key, before.get(key), after.get(key)) for key in {**before, **after} if before.get(key) != after.get(key)]


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested sections by their dotted keys."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return values


def below(name: str, sections: tuple[str, ...]) -> bool:
    """Whether a key is one of some sections, or in one of them."""
    return any(name == section or name.startswith(f"{section}.") for section in sections)

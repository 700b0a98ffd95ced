"""resume=auto|must|never: which checkpoint a run resumes from, and why it may not."""

import inspect
from pathlib import Path
from typing import Any

from mingpt_lightning.checkpoint import KEY, read_checkpoint
from mingpt_lightning.cli.build import leads_to
from mingpt_lightning.cli.processes import is_first_process
from mingpt_lightning.cli.run import Run
from mingpt_lightning.console import console
from mingpt_lightning.errors import CheckpointError, UserError
from mingpt_lightning.gpt import GPT
from mingpt_lightning.language_model import LanguageModel
from mingpt_lightning.loop_state import total_steps
from mingpt_lightning.restore import class_name
from mingpt_lightning.storage import find_corruption

INVALIDATING = (
    *(
        "model",
        "adapter",
        "system",
        "datamodule",
        "optimizer",
        "scheduler",
        "seed",
        "optimized_metric",
        "choices.datamodule",
    ),
)
"""Settings whose change invalidates a resume: the result would be neither the old run's nor the new one's."""

HARMLESS = ("datamodule.batch_size", "datamodule.global_batch_size", "datamodule.cache_dir")
"""Exceptions among them: the order of the data doesn't depend on these."""

SILENT = (
    *("task", "resume", "run_dir", "checkpoint", "choices", "config_dirs"),
    *("trainer.default_root_dir", "callbacks.checkpoint.dirpath", "model.block_size", "system.recompute"),
    *("process_timeout", "trainer.devices", "trainer.num_nodes"),
)
"""Settings that don't affect the result, or that follow from another one; their change is not mentioned."""


def find_resumable(run_dir: Path, resume: str) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint to resume from, and what is wrong with newer ones.

    resume: auto resumes where there is something, must insists on it, never refuses a folder with a run in it.
    Raises CheckpointError where all checkpoints are damaged, or "must" finds none; UserError where "never" finds a run.
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
        wrong = find_corruption(file)
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
    return None, notes


def continue_from(run: Run, file: Path) -> None:
    """Say from where a run resumes and what has changed; raise CheckpointError where that would be wrong."""
    content = read_checkpoint(file, mmap=True)
    now, sources = run.system.metadata(run.datamodule), run.datamodule.sources
    lines = check_resumable(content, now, file, sources) + check_epochs(content[KEY], run, file)
    console.print(f"resuming    {file}, step {content['global_step']:,}", markup=False)
    for line in lines:
        console.print(f"changed     {line}", markup=False)
    last = run.folder / "checkpoints" / "last.ckpt"
    if last.exists() and file != last and is_first_process():  # so that a damaged file doesn't become previous.ckpt
        last.replace(last.with_suffix(".ckpt.damaged"))


def check_resumable(
    content: dict[str, Any], now: dict[str, Any], file: Path, sources: tuple[str, ...] = ()
) -> list[str]:
    """The differences between a checkpoint's run and this one that are worth a line.

    content: the checkpoint. now: what this run would put under KEY. sources: the arguments that say where the data is,
    which may differ where the data doesn't. Raises CheckpointError for a difference that invalidates a resume, and for
    a file with weights only.
    """
    if "optimizer_states" not in content:
        fix = f"Use them as initial weights of a new run: checkpoint={file} with another run_dir=."
        raise CheckpointError(f"{file} holds weights only", "resume", fix)
    saved = content[KEY]
    if "environment" not in saved:
        what = f"{file} was written by version {saved.get('version')}, which could not be resumed"
        raise CheckpointError(what, "resume", f"Start a new run from its weights: checkpoint={file}.")
    lines = {}
    config = {"system": {"_target_": class_name(LanguageModel)}, **saved["config"]}  # version 0.1.0 had no choice
    for name, before, after in differences(flat(config), flat(now["config"])):
        same_target = name.endswith("_target_") and leads_to(before) == leads_to(after)
        if not below(name, SILENT) and not same_target:
            lines[name] = f"{name}: {before} in the checkpoint, {after} now"
    arguments = inspect.signature(GPT).parameters  # of which earlier versions had fewer
    before_them = {name: arguments[name].default for name in now["gpt"] if name in arguments}
    for name, before, after in differences(before_them | saved["gpt"], now["gpt"]):
        lines.setdefault(f"model.{name}", f"{name}: {before} in the checkpoint, {after} now")
    if saved["tokenizer"] != now["tokenizer"]:
        lines["datamodule.tokenizer"] = "another vocabulary"
    harmless = [*HARMLESS]
    if str(now["data"]).startswith(str(saved["data"])):  # of an earlier version, the first part
        harmless += [f"datamodule.{name}" for name in sources]
    else:
        lines["datamodule.data"] = "other data: its fingerprint has changed"
    wrong = [line for name, line in lines.items() if below(name, INVALIDATING) and not below(name, (*harmless,))]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        what = f"{file} is of another run: {'; '.join(wrong[:4])}{more}"
        fix = "Leave out what differs: a run takes its own settings. "
        fix += f"Or start a new run from its weights: checkpoint={file} run_dir=NEW."
        raise CheckpointError(what, "resume", fix)
    versions = {"mingpt_lightning": saved["version"], **saved["environment"]}
    versions_now = {"mingpt_lightning": now["version"], **now["environment"]}
    for name, before, after in differences(versions, {n: versions_now.get(n) for n in versions}):
        lines[name] = f"{name}: {before} in the checkpoint, {after} now; the last bits may differ"
    return list(lines.values())


def check_epochs(saved: dict[str, Any], run: Run, file: Path) -> list[str]:
    """The difference in the length of an epoch; one of windows at random was once each window at every place.

    saved: what the checkpoint holds under KEY. Raises CheckpointError where the training would have another length.
    """
    data, trainer = run.datamodule, run.trainer
    before, now = saved.get("epoch_size", len(data.sequences("train"))), data.epoch_size
    if before == now:
        return []
    steps = total_steps(trainer, max(1, before // data.train_dataloader().global_batch_size))
    if steps != total_steps(trainer):
        what = f"trainer.max_epochs={trainer.max_epochs} is not what it was in {file}: "
        what += f"an epoch was {before:,} sequences, and is {now:,} now"
        raise CheckpointError(what, "trainer.max_epochs", f"Give trainer.max_steps={steps} trainer.max_epochs=null.")
    return [f"an epoch: {before:,} sequences in the checkpoint, {now:,} now"]


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

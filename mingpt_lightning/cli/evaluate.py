"""task=validate and task=test: the metrics of a checkpoint, or of a pretrained model, on one split."""

import contextlib
import json
from pathlib import Path

from omegaconf import DictConfig

from mingpt_lightning.cli.limits import check_limits
from mingpt_lightning.cli.processes import one_job
from mingpt_lightning.cli.run import assemble_evaluation, named_folder, run_folder, save_config
from mingpt_lightning.cli.summary import Result, report, write_summary
from mingpt_lightning.cli.watch import watched
from mingpt_lightning.console import console
from mingpt_lightning.datamodule import Split
from mingpt_lightning.errors import ResourceError, UserError


def run_task(cfg: DictConfig, started: float) -> float | None:
    """Evaluate, and write what was found into the folder of the run that the checkpoint belongs to.

    As validate.json or test.json; as summary.json where the command line names a folder, or in a sweep. Returns the
    loss.
    """
    run, folder = assemble_evaluation(cfg), named_folder(cfg)
    if folder is not None and (holds := other_run(folder, cfg.task, run.checkpoint)):
        fix = "Choose another folder; without run_dir=, the run of the checkpoint keeps the result."
        raise UserError(f"{folder} holds another run: {holds}", "run_dir", fix)
    run.system.started = started
    split: Split = "val" if cfg.task == "validate" else "test"
    check_limits(run.trainer, run.datamodule, split)
    evaluate = run.trainer.validate if split == "val" else run.trainer.test
    with one_job(), watched(run.trainer, run_folder(), cfg.process_timeout):
        found = evaluate(run.system, datamodule=run.datamodule, verbose=False)
        if not found:
            key = f"trainer.limit_{split}_batches"
            raise UserError(f"{key}=0 leaves nothing to evaluate", key, "Use 1 or more.")
        metrics = dict(found[0])
        result = Result(cfg.task, metrics, run.steps, run.checkpoint)
        report(run, result)
    file = None
    if folder is not None:
        save_config(cfg, folder)
        file = folder / "summary.json"
    elif run.checkpoint is not None and run.checkpoint.parent.name == "checkpoints":
        file = run.checkpoint.parent.parent / f"{cfg.task}.json"
    if file is not None and run.trainer.is_global_zero:
        try:
            write_summary(run, result, file, shared=True)
            console.print(f"written     {file}", markup=False)
        except ResourceError as error:
            if folder is not None:
                raise
            console.print(f"not written {error.what}", markup=False)  # the run may be somebody else's
    return metrics.get(f"{split}/loss")


def other_run(folder: Path, task: str, checkpoint: Path | None) -> str | None:
    """What a folder holds of a training, or of another evaluation than this; None where the result may be written."""
    if file := next(folder.glob("checkpoints/*.ckpt"), None):
        return file.name
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        if (found.get("task"), found.get("checkpoint")) != (task, checkpoint and str(checkpoint)):
            return "summary.json"
    return None

"""task=validate and task=test: the metrics of a checkpoint, or of a pretrained model, on one split."""

from omegaconf import DictConfig

from mingpt_lightning.cli.limits import check_limits
from mingpt_lightning.cli.run import assemble_evaluation, named_folder, save_config
from mingpt_lightning.cli.summary import Result, report, write_summary
from mingpt_lightning.console import console
from mingpt_lightning.datamodule import Split
from mingpt_lightning.errors import ResourceError, UserError


def run_task(cfg: DictConfig, started: float) -> float | None:
    """Evaluate, and write what was found into the folder of the run that the checkpoint belongs to.

    As validate.json or test.json; as summary.json where the command line names a folder, or in a sweep. Returns the
    loss.
    """
    run = assemble_evaluation(cfg)
    run.system.started = started
    split: Split = "val" if cfg.task == "validate" else "test"
    check_limits(run.trainer, run.datamodule, split)
    evaluate = run.trainer.validate if split == "val" else run.trainer.test
    found = evaluate(run.system, datamodule=run.datamodule, verbose=False)
    if not found:
        key = f"trainer.limit_{split}_batches"
        raise UserError(f"{key}=0 leaves nothing to evaluate", key, "Use 1 or more.")
    metrics = dict(found[0])
    result = Result(cfg.task, metrics, run.steps, run.checkpoint)
    report(run, result)
    file = None
    if (folder := named_folder(cfg)) is not None:
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

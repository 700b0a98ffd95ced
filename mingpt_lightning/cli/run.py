"""A run, assembled from its config: datamodule, model, LightningModule, Trainer, in this order.

Also what belongs to a run beside them: its folder, its config on disk, and the checkpoint that it reads.
"""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers.oc import env

from mingpt_lightning.cli.build import build, build_callbacks, build_each, build_trainer
from mingpt_lightning.cli.own_settings import folders_of
from mingpt_lightning.cli.processes import is_first_process
from mingpt_lightning.cli.restore import build_datamodule, check_classes, is_pretrained, read_named, rebuild
from mingpt_lightning.cli.signatures import GLOBAL
from mingpt_lightning.cli.start import meaning, read_start, start_adapter, start_data, start_model, start_system
from mingpt_lightning.datamodule import SequenceDataModule
from mingpt_lightning.errors import CheckpointError, UserError
from mingpt_lightning.language_model import LanguageModel
from mingpt_lightning.storage import KEY


@dataclass
class Run:
    """What a config describes, ready to be trained or evaluated.

    folder: where it writes. checkpoint, steps: the file that its weights are from, and its optimizer steps.
    """

    cfg: DictConfig
    folder: Path
    datamodule: SequenceDataModule
    system: LanguageModel
    trainer: pl.Trainer
    checkpoint: Path | None = None
    steps: int = 0


def assemble(
    cfg: DictConfig,
    *,
    training: bool = True,
    callbacks: list[pl.Callback] | None = None,
    resumed: Path | None = None,
) -> Run:
    """Everything that a config describes, built in order. `training=False` leaves callbacks and loggers out.

    callbacks: more of them. resumed: the checkpoint that the run goes on from. Whatever the config gets wrong ends here
    in one line, before anything is written.
    """
    check_classes(cfg)
    pl.seed_everything(cfg.seed, verbose=False)
    start = read_start(cfg, resumed)
    datamodule = start_data(cfg, start)
    gpt = start_adapter(cfg, start_model(cfg, datamodule, start), start)
    optimizer, scheduler = build(cfg.optimizer, "optimizer"), build(cfg.scheduler, "scheduler")
    system = build_system(cfg, gpt, optimizer, scheduler, datamodule.tokenizer)
    if start is not None:
        start_system(system, start)
    system.make_optimizer()  # a mistake in its arguments is found now
    loggers = build_each(cfg.logger, "logger") if training else []
    hooks = build_callbacks(cfg.callbacks, system.metric_names(), bool(loggers)) if training else []
    n_embd = gpt.config["n_embd"]
    sizes = datamodule.batch_size, cfg.datamodule.get(GLOBAL)
    hooks += callbacks or []
    trainer = build_trainer(cfg.trainer, n_embd, *sizes, callbacks=hooks, logger=loggers or False)
    datamodule.trainer = trainer  # these two: so that the number of steps is known before training
    trainer.datamodule = datamodule  # type: ignore[attr-defined]
    source = (None, 0) if start is None else (start.file, start.content["global_step"])
    return Run(cfg, run_folder(), datamodule, system, trainer, *source)


def assemble_evaluation(cfg: DictConfig) -> Run:
    """The run that evaluates a checkpoint on its own data, or a pretrained model on the config's."""
    if cfg.checkpoint is None and is_pretrained(cfg.model):
        run = assemble(cfg, training=False)
        run.system.eval()
        return run
    path, content = read_named(cfg)
    datamodule, system = build_datamodule(content, cfg), rebuild(content)
    gpt = system.gpt.config
    known = content[KEY]["tokenizer"]
    same = known is not None and meaning(known) == meaning(datamodule.tokenizer.state())  # the model may be padded
    if not (same or datamodule.vocab_size == gpt["vocab_size"]) or datamodule.block_size > gpt["block_size"]:
        what = f"the data has vocab_size={datamodule.vocab_size} and block_size={datamodule.block_size}, "
        what += f"the checkpoint {gpt['vocab_size']} and {gpt['block_size']}"
        raise CheckpointError(what, "datamodule", "Leave out datamodule= to use the run's own data.")
    trainer = build_trainer(cfg.trainer, gpt["n_embd"], callbacks=[], logger=False)
    return Run(cfg, run_folder(), datamodule, system, trainer, path, content["global_step"])


def build_system(cfg: DictConfig, gpt: Any, *parts: Any) -> LanguageModel:
    """The LightningModule of a config around a GPT. parts: optimizer, scheduler and tokenizer."""
    arguments = dict(zip(("optimizer", "scheduler", "tokenizer"), parts, strict=True))
    system = build(cfg.system, "system", gpt=gpt, **arguments, config=resolved(cfg))
    if not isinstance(system, LanguageModel):
        what = f"{cfg.system._target_} is not derived from LanguageModel"
        raise UserError(what, "system._target_", "Derive it: class Mine(LanguageModel).")
    return system


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain data for the checkpoint; without loggers, which may hold secrets."""
    known = cfg.copy()
    known.run_dir = HydraConfig.get().runtime.output_dir  # a sweep's jobs have folders of their own
    del known.logger
    values = OmegaConf.to_container(known, resolve=True)
    assert isinstance(values, dict)
    choices = {name: choice for name, choice in HydraConfig.get().runtime.choices.items() if "/" not in name}
    return {**values, "choices": choices, "config_dirs": folders_of(HydraConfig.get().runtime.config_sources)}


def hyperparameters(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config for loggers, without their own section; what comes from the environment stays as written."""
    OmegaConf.register_new_resolver("oc.env", lambda name, *_: f"${{oc.env:{name}}}", replace=True)
    try:
        return {name: value for name, value in resolved(cfg).items() if name != "config_dirs"}
    finally:
        OmegaConf.register_new_resolver("oc.env", env, replace=True)


def run_folder() -> Path:
    """Where this run writes, relative to the working directory where that is shorter."""
    path = Path(HydraConfig.get().runtime.output_dir)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def named_folder(cfg: DictConfig) -> Path | None:
    """The folder that the command line names for this job, or that it has as one of a sweep; None if there is none."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_folder()
    return Path(cfg.run_dir) if any(o.startswith("run_dir=") for o in HydraConfig.get().overrides.task) else None


def save_config(cfg: DictConfig, folder: Path) -> None:
    """Write .hydra/, as Hydra does, but once it's clear that the run will be: a refused command leaves no trace.

    Interpolations are written as such, so what they take from the environment stays there.
    """
    folder = folder / ".hydra"
    if not is_first_process():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, folder / "config.yaml")
        OmegaConf.save(OmegaConf.create({"hydra": HydraConfig.get()}), folder / "hydra.yaml")
        OmegaConf.save(HydraConfig.get().overrides.task, folder / "overrides.yaml")
    except OSError as error:
        what = f"cannot write {folder}: {error.strerror or error}"
        raise UserError(what, "run_dir", "Choose another run_dir=.") from error


def process_start() -> float:
    """When this process began, on the clock of time.perf_counter; where the system doesn't tell, now."""
    now = time.perf_counter()
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return now - age if 0 <= age < 60 else now
    return now

"""What the command line can do: fit, validate, test, generate; one function each.

A task takes the composed config, does its work, and returns the number that a sweep compares (None if there is none).
"""

import inspect
import json
import logging
import re
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from mingpt_lightning.callbacks import StopOnSignal, console
from mingpt_lightning.checkpoint import KEY, Checkpoint, find_checkpoint, read_checkpoint
from mingpt_lightning.config import compose
from mingpt_lightning.datamodule import SequenceDataModule
from mingpt_lightning.errors import CheckpointError, ResourceError, UserError, nearest, require_positive
from mingpt_lightning.generation import check_sampling
from mingpt_lightning.language_model import LanguageModel

for name in ("pytorch_lightning", "lightning_fabric", "lightning"):
    logging.getLogger(name).setLevel(logging.WARNING)  # no tips


def fit(cfg: DictConfig) -> float | None:
    """Train, then test the best checkpoint on data that nothing was chosen by."""
    started = time.perf_counter()
    run_dir = run_folder()
    if any(run_dir.glob("checkpoints/*.ckpt")):
        raise UserError(f"{run_dir} already holds a run", "run_dir", "Choose another run_dir=.")
    pl.seed_everything(cfg.seed, verbose=False)
    datamodule: SequenceDataModule = build(cfg.datamodule, "datamodule")
    gpt = build(cfg.model, "model", vocab_size=datamodule.vocab_size, block_size=datamodule.block_size)
    optimizer, scheduler = build(cfg.optimizer, "optimizer"), build(cfg.scheduler, "scheduler")
    system = LanguageModel(gpt, optimizer, scheduler, datamodule.tokenizer, config=plain(cfg))
    stop = StopOnSignal()
    callbacks = [build(node, f"callbacks.{name}") for name, node in cfg.callbacks.items() if node is not None]
    loggers = [build(node, f"logger.{name}") for name, node in cfg.logger.items() if node is not None]
    for name, node in cfg.callbacks.items():
        monitor = node and node.get("monitor", "val/loss")
        if monitor and monitor not in system.metric_names():
            known = nearest(monitor, system.metric_names())
            raise UserError(f"there is no metric {monitor}", f"callbacks.{name}.monitor", known)
    if not loggers:
        callbacks = [c for c in callbacks if not isinstance(c, pl.callbacks.LearningRateMonitor)]  # it needs a logger
    trainer = build_trainer(cfg.trainer, gpt.config["n_embd"], callbacks=[*callbacks, stop], logger=loggers or False)
    console.print(
        f"GPT of {gpt.n_parameters:,} parameters on {trainer.strategy.root_device}, {trainer.precision}, "
        f"{torch.get_num_threads()} threads"
    )
    trainer.fit(system, datamodule=datamodule)

    metrics = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith(("train/", "val/"))}
    steps, keeper = trainer.global_step, next((c for c in callbacks if isinstance(c, Checkpoint)), None)
    checkpoint = None
    if stop.received is None and system.validated_step != steps and len(datamodule.dataset("val")):
        metrics |= trainer.validate(system, datamodule=datamodule, verbose=False)[0]
    if keeper is not None:
        checkpoint = find_checkpoint(run_dir)
        if checkpoint.name == "best.ckpt":
            system.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
            metrics |= keeper.best_metrics
    if stop.received is None and len(datamodule.dataset("test")):
        metrics |= trainer.test(system, datamodule=datamodule, verbose=False)[0]
    seconds = time.perf_counter() - started
    summary = {
        "task": "fit",
        "metrics": metrics,
        "steps": steps,
        "tokens": system.tokens_seen,
        "seconds": round(seconds, 2),
        "parameters": gpt.n_parameters,
        "checkpoint": checkpoint and str(checkpoint),
    }
    (run_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    report(summary, system, datamodule, run_dir)
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
    started = time.perf_counter()
    run_dir = run_folder()
    path, content = read_named(cfg)
    datamodule: SequenceDataModule = build(datamodule_of(content), "datamodule")
    system = LanguageModel.from_checkpoint(content)
    gpt = system.gpt.config
    if (datamodule.vocab_size, datamodule.block_size) != (gpt["vocab_size"], gpt["block_size"]):
        what = f"the data has vocab_size={datamodule.vocab_size} and block_size={datamodule.block_size}, "
        what += f"the checkpoint {gpt['vocab_size']} and {gpt['block_size']}"
        raise CheckpointError(what, "datamodule", "Leave out datamodule= to take the run's own data.")
    trainer = build_trainer(cfg.trainer, gpt["n_embd"], callbacks=[], logger=False)
    run = trainer.validate if split == "val" else trainer.test
    metrics = dict(run(system, datamodule=datamodule, verbose=False)[0])
    summary = {
        "task": "validate" if split == "val" else "test",
        "metrics": metrics,
        "steps": content["global_step"],
        "tokens": system.tokens_seen,
        "seconds": round(time.perf_counter() - started, 2),
        "parameters": system.gpt.n_parameters,
        "checkpoint": str(path),
    }
    (run_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    report(summary, system, datamodule, run_dir)
    return metrics.get(f"{split}/loss")


def generate(cfg: DictConfig) -> None:
    """Text from a checkpoint, on standard output or as JSON lines."""
    require_positive(num_samples=cfg.num_samples)
    _, content = read_named(cfg)
    system = LanguageModel.from_checkpoint(content)
    if system.tokenizer is None:
        raise CheckpointError("the checkpoint has no tokenizer", "checkpoint", "Use GPT.generate in Python.")
    length = system.tokenizer.answer_length
    temperature = (0.0 if length else 1.0) if cfg.temperature is None else cfg.temperature
    check_sampling(temperature, cfg.top_k)
    max_new_tokens = cfg.max_new_tokens or length or 200
    require_positive(max_new_tokens=max_new_tokens)
    prompt = "" if cfg.prompt is None else str(cfg.prompt)
    options = {
        "temperature": temperature,
        "top_k": cfg.top_k,
        "seed": cfg.seed,
        "num_samples": cfg.num_samples,
    }
    texts = system.complete(prompt, max_new_tokens, **options)
    if cfg.output is None:
        sys.stdout.write("".join(text + "\n" for text in texts))
        return
    shown = len(system.tokenizer.decode(system.tokenizer.encode(prompt))) if prompt else 0
    lines = [json.dumps({"prompt": prompt, "completion": text[shown:]}, ensure_ascii=False) + "\n" for text in texts]
    try:
        Path(cfg.output).write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"cannot write {cfg.output}: {error.strerror}", "output", "Choose another file.") from error


TASKS: dict[str, Callable[[DictConfig], float | None]] = {
    "fit": fit,
    "validate": validate,
    "test": test,
    "generate": generate,
}


def build(node: Any, where: str, **arguments: Any) -> Any:
    """The object that a section of the config describes: its `_target_`, called with its keys and `arguments`.

    `_partial_: true` gives a partial. Raises UserError when the target can't be found or doesn't take the arguments.
    """
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise UserError(f"{where} names no class", where, "Give it a _target_.")
    try:
        factory = instantiate(node, _convert_="all", _partial_=True)
        return factory if node.get("_partial_") else factory(**arguments)
    except (UserError, MemoryError):
        raise
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(str(error).splitlines()[0], where, "Check its _target_ and arguments.") from error
    except Exception as error:  # whatever the target says of its arguments: they come from the config
        message = " ".join(str(error).split()) or type(error).__name__
        if unknown := re.search(r"unexpected keyword argument '(\w+)'", message):
            known = inspect.signature(get_class(node._target_)).parameters
            raise UserError(f"unknown key '{where}.{unknown[1]}'", where, nearest(unknown[1], known)) from error
        if isinstance(error, ImportError):
            raise UserError(message, where, "Install what is missing, or choose another.") from error
        given = [item for item in HydraConfig.get().overrides.task if item.startswith(f"{where}.")]
        raise UserError(message, ", ".join(given) or where, "Correct its arguments.") from error


def build_trainer(node: DictConfig, n_embd: int, **arguments: Any) -> pl.Trainer:
    """The Trainer, with `precision: auto` decided by the device and the width of the model."""
    settings = node.copy()
    if settings.enable_checkpointing is None:  # Lightning would add a checkpoint callback of its own
        settings.enable_checkpointing = any(isinstance(c, pl.callbacks.Checkpoint) for c in arguments["callbacks"])
    if settings.precision == "auto":
        settings.precision = fast_precision(settings.accelerator, n_embd)
    if settings.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError("there is no GPU here", "trainer.accelerator", "Use trainer=cpu or trainer=auto.")
    return build(settings, "trainer", **arguments)


def fast_precision(accelerator: str, n_embd: int) -> str:
    """bf16-mixed where the device has instructions for it and the matrices are wide enough to gain, else 32-true."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        fast = False
    else:
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if fast and n_embd >= 256 else "32-true"


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain data for the checkpoint; without loggers, which may hold secrets."""
    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    del values["logger"]
    choices = {name: choice for name, choice in HydraConfig.get().runtime.choices.items() if "/" not in name}
    return {**values, "choices": choices}


def run_folder() -> Path:
    """Where this run writes, seen from the working directory where that is shorter."""
    path = Path(HydraConfig.get().runtime.output_dir)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def read_named(cfg: DictConfig) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that the command line names: its path and its contents, with its project imported."""
    if cfg.checkpoint is None:
        raise UserError(f"task={cfg.task} needs a checkpoint", "checkpoint", "Give checkpoint=RUN_FOLDER_OR_FILE.")
    path = find_checkpoint(cfg.checkpoint)
    content = read_checkpoint(path)
    datamodule_class(content)
    return path, content


def datamodule_class(content: dict[str, Any]) -> type:
    """The datamodule class of a checkpoint's run, by the name of its config: never by a class name in the file."""
    choice = content[KEY]["config"]["choices"]["datamodule"]
    return get_class(compose([f"datamodule={choice}"]).datamodule._target_)


def datamodule_of(content: dict[str, Any]) -> DictConfig:
    """The datamodule section of a checkpoint's run, with what the command line says of it on top.

    Its vocabulary is the checkpoint's, also where the text is another one.
    """
    saved = content[KEY]["config"]
    overrides = [item for item in HydraConfig.get().overrides.task if re.match(r"\+?datamodule[.=]", item)]
    choice = f"datamodule={saved['choices']['datamodule']}"
    other = any(item.startswith("datamodule=") and item != choice for item in overrides)
    node = compose(overrides if other else [choice, *overrides]).datamodule
    given = {item.split("=")[0].removeprefix("datamodule.") for item in overrides}
    values = {} if other else saved["datamodule"]
    for name, value in {**values, **content[KEY]["tokenizer"]["arguments"]}.items():
        if name in node and name not in given and not name.startswith("_"):
            node[name] = value
    return node


def report(summary: dict[str, Any], system: LanguageModel, datamodule: SequenceDataModule, run_dir: Path) -> None:
    """The end of a run, for people."""
    metrics, tokenizer = summary["metrics"], datamodule.tokenizer
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
            bits = metrics.get(name.replace("loss", "bits_per_character"))
            extra = f"  ({bits:.4f} bits per character)" if bits is not None else ""
            console.print(f"{name}  {metrics[name]:.4f}{extra}")
    console.print(f"{summary['steps']:,} steps, {summary['tokens']:,} tokens, {summary['seconds']:.1f} seconds")
    console.print(f"run folder  {run_dir}", markup=False)
    if summary["task"] == "fit" and summary["checkpoint"] and tokenizer is not None:
        prompt = "\n"
        if tokenizer.answer_length is not None:
            inputs, _ = datamodule.dataset("val")[torch.arange(1)]
            prompt = tokenizer.decode(inputs[0, : 1 - tokenizer.answer_length].tolist()).strip(" =->")
        program = "python main.py" if sys.argv[0].endswith("main.py") else Path(sys.argv[0]).name
        prompt_option = f' prompt="{prompt}"' if prompt.strip() else ""
        console.print(
            f"try it      {program} task=generate checkpoint={shlex.quote(str(run_dir))}{prompt_option}",
            markup=False,
        )

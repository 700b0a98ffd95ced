"""What a task has found, in summary.json and for people."""

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mingpt_lightning.callbacks import console
from mingpt_lightning.datamodule import SequenceDataModule
from mingpt_lightning.language_model import LanguageModel
from mingpt_lightning.storage import unwritable, write_text


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


def program() -> str:
    """How this program was called."""
    return "python main.py" if sys.argv[0].endswith("main.py") else Path(sys.argv[0]).name

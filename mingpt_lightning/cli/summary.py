"""What a run says of itself: its first lines, summary.json, its last lines, and curves.png."""

import contextlib
import csv
import json
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from rich.filesize import decimal

from mingpt_lightning.adapter import adapter_of
from mingpt_lightning.cli.config import program
from mingpt_lightning.cli.run import Run
from mingpt_lightning.console import console
from mingpt_lightning.device import dtype_rates, thread_rates
from mingpt_lightning.files import atomic_write, write_error, write_text
from mingpt_lightning.loop_state import total_steps


class Result(NamedTuple):
    """What a task has found. steps: optimizer steps of the weights. checkpoint: the file that holds them.

    ended: why training did.
    """

    task: str
    metrics: dict[str, float]
    steps: int
    checkpoint: Path | None
    ended: str | None = None


def describe(run: Run, compiled: bool) -> None:
    """Print what is about to be trained: data, model, optimization, device and run folder."""
    data, gpt, trainer = run.datamodule, run.system.gpt, run.trainer
    sizes = f"{data.epoch_size:,} train, {len(data.sequences('val')):,} val, {len(data.sequences('test')):,} test"
    choice = HydraConfig.get().runtime.choices.get("datamodule")
    up_to = "up to " * getattr(data.sequences("train"), "ragged", False)
    console.print(
        f"data        {choice}: {sizes} sequences of {up_to}{data.block_size} tokens, vocabulary of {data.vocab_size:,}"
    )
    config = gpt.config
    shape = " ".join(f"{name}={config[name]}" for name in ("n_layer", "n_head", "n_embd"))
    console.print(f"model       GPT of {gpt.n_parameters:,} parameters, {shape}")
    if adapter_of(gpt) is not None:
        trained = sum(weight.numel() for weight in gpt.parameters() if weight.requires_grad)
        console.print(f"adapter     {trained:,} of these parameters are trained")
    sequences = data.batch_size * trainer.accumulate_grad_batches * trainer.world_size
    parts = [f"{up_to}{sequences * data.block_size:,} tokens"]
    parts += [f"{trainer.world_size} processes of {data.batch_size}"] * (trainer.world_size > 1)
    parts += [f"{trainer.accumulate_grad_batches} batches accumulated"] * (trainer.accumulate_grad_batches > 1)
    optimizer = run.system.make_optimizer()
    rates = " and ".join(dict.fromkeys(f"{group['lr']:.3g}" for group in optimizer.param_groups))
    console.print(
        f"training    {total_steps(trainer):,} steps of {sequences:,} sequences "
        f"({', '.join(parts)}), {type(optimizer).__name__}, learning rate {rates}"
    )
    threads = torch.get_num_threads()
    device = f"{trainer.strategy.root_device}, {trainer.precision}, {threads} thread{'s' * (threads > 1)}"
    console.print(f"device      {device}{', compiled' if compiled else ''}")
    if measured := describe_probe(run):
        console.print(f"probe       {measured}")
    console.print(f"run folder  {run.folder}", markup=False)


def describe_probe(run: Run) -> str:
    """What was measured to choose threads and precision, and the memory that the slower precision would save."""
    device, gpt = run.trainer.strategy.root_device, run.system.gpt
    n_embd = gpt.config["n_embd"]
    by_threads = thread_rates(device, n_embd)
    by_dtype = dtype_rates(device, n_embd) if run.cfg.trainer.precision == "auto" else {}
    parts = [f"{rate:,.0f} on {count} thread{'s' * (count != '1')}" for count, rate in by_threads.items()]
    parts += [f"{rate:,.0f} in {dtype}" for dtype, rate in by_dtype.items()]
    if by_dtype and run.trainer.precision == "32-true":
        # of what is kept for the backward pass, bfloat16 halves 13 values per token, layer and unit of width; it adds a
        # copy of the weights
        kept = run.datamodule.batch_size * run.datamodule.block_size * gpt.config["n_layer"] * n_embd
        saved = 2 * (13 * kept - gpt.n_parameters)
        memory = f"about {decimal(saved)} less" if saved > 0 else "no less"
        parts += [f"trainer.precision=bf16-mixed would need {memory} memory"]
    return f"GFLOP/s at width {n_embd:,}: {', '.join(parts)}" if parts else ""


def summary(run: Run, result: Result) -> dict[str, Any]:
    """What summary.json holds. seconds: since the start of the process, with those of processes that it resumes."""
    return {
        "task": result.task,
        "metrics": result.metrics,
        "steps": result.steps,
        "tokens": run.system.tokens_seen,
        "seconds": round(run.system.seconds, 2),
        "parameters": run.system.gpt.n_parameters,
        "checkpoint": result.checkpoint and str(result.checkpoint),
        **({"ended": result.ended} if result.ended else {}),
    }


def write_summary(run: Run, result: Result, file: Path, *, shared: bool = False) -> None:
    """Write summary.json, or the same under another name. shared: other processes may be writing it too."""
    try:
        write_text(file, json.dumps(summary(run, result), indent=2) + "\n", durable=True, shared=shared)
    except OSError as error:
        raise write_error(file, error, "run_dir", "Free some space, or choose another run_dir=.") from error


def report(run: Run, result: Result) -> None:
    """Print the metrics of a result, with examples where a task has right answers."""
    metrics, data = result.metrics, run.datamodule
    console.print()
    split = "test" if "test/loss" in metrics else "val"
    if f"{split}/exact_match" in metrics:
        dataset = data.sequences(split)  # type: ignore[arg-type]
        results = run.system.solve(dataset[torch.arange(min(len(dataset), 1000))])
        console.print(f"{split} exact match  {metrics[f'{split}/exact_match']:.1%}", style="bold")
        for name, kind in (("right", True), ("wrong", False)):
            texts = [text for text, right in results if right == kind][:3]
            if texts:
                console.print(f"  {name}  {'   '.join(texts)}", markup=False)
    for part in ("val", "test"):
        if f"{part}/loss" in metrics:
            more = [f"perplexity {metrics[f'{part}/perplexity']:,.3f}"] if f"{part}/perplexity" in metrics else []
            for unit in ("character", "byte", "dimension"):
                if (bits := metrics.get(f"{part}/bits_per_{unit}")) is not None:
                    more.append(f"{bits:.4f} bits per {unit}")
            console.print(f"{part}/loss  {metrics[f'{part}/loss']:.4f}" + (f"  ({', '.join(more)})" if more else ""))
    if result.task == "fit":
        if result.ended not in ("max_steps", "max_epochs"):
            console.print(f"ended       {result.ended}", markup=False)
        console.print(f"{result.steps:,} steps, {run.system.tokens_seen:,} tokens, {run.system.seconds:.1f} seconds")
    else:
        weights = f"{result.checkpoint}, step {result.steps:,}" if result.checkpoint else "a pretrained model"
        console.print(f"weights     {weights}", markup=False)
        console.print(f"{run.system.seconds:.1f} seconds")


def suggest(run: Run) -> None:
    """Print the command that samples from a trained model."""
    command = f"{program()} task=generate checkpoint={shlex.quote(str(run.folder))}"
    tokenizer = run.datamodule.tokenizer
    if tokenizer.answer_length is not None:
        inputs, _ = run.datamodule.sequences("val")[torch.arange(1)]
        prompt = tokenizer.decode(inputs[0, : 1 - tokenizer.answer_length].tolist()).strip(" =->")
        command += f' prompt="{prompt}"'
    console.print(f"try it      {command}", markup=False)


def new_values(rows: list[dict[str, str]], name: str) -> list[dict[str, str]]:
    """The rows in which a metric differs from the row before: that of a validation is repeated until the next one."""
    before = ["", *(row.get(name, "") for row in rows)]
    return [row for row, value in zip(rows, before, strict=False) if row.get(name) and row[name] != value]


def draw_curves(folder: Path) -> None:
    """Draw the losses of metrics.csv over the steps into curves.png; nothing without matplotlib."""
    with contextlib.suppress(ImportError, OSError):
        with (folder / "metrics.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        for name, style in (("train/loss", {"linewidth": 1}), ("val/loss", {"marker": "o", "markersize": 3})):
            points = [(int(row["step"]), float(row[name])) for row in new_values(rows, name)]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, **style)
        axes.set(xlabel="optimizer steps", ylabel="loss (nats per token)")
        if axes.lines:
            axes.legend()
            with atomic_write(folder / "curves.png") as part:
                figure.savefig(part, format="png", dpi=120)

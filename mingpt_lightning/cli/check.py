"""task=check: what an experienced engineer tries before a long run, in about a minute, on its data and device.

Each check is a function that says what it found, and what to do if that is off. None leaves anything behind.
"""

import copy
import math
import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.filesize import decimal

from mingpt_lightning.checkpoint import Checkpoint
from mingpt_lightning.cli.build import build, build_callbacks, build_trainer
from mingpt_lightning.cli.limits import check_limits
from mingpt_lightning.cli.restore import gpt_maker, is_pretrained
from mingpt_lightning.cli.run import assemble, build_system
from mingpt_lightning.console import console
from mingpt_lightning.datamodule import IGNORE, Batch
from mingpt_lightning.errors import UserError, resource_error
from mingpt_lightning.files import check_writable
from mingpt_lightning.gpt import GPT
from mingpt_lightning.language_model import LanguageModel
from mingpt_lightning.loop_state import total_steps
from mingpt_lightning.loss import chunk_rows
from mingpt_lightning.storage import load_checkpoint, write_checkpoint

TIMED, OVERFIT, STEPS, ENOUGH = 3.0, 15.0, 300, 50
"""Seconds for timing steps, and for overfitting one batch; the most steps of that; after how many it may be off."""


class Finding(NamedTuple):
    """What a check says. ok: None if it couldn't be decided. fix: what to do if it's off."""

    ok: bool | None
    text: str
    fix: str = ""


class Trial:
    """A run up to its first step, assembled as `fit` does, with a first batch to try things on.

    few: short parts of that batch. flops: per token (Chowdhery et al. 2022, "PaLM", appendix B). weights: bytes.
    trained: the share of the weights that are, which an adapter makes small.
    """

    def __init__(self, cfg: DictConfig):
        self.cfg = cfg
        self.run = assemble(cfg, training=False)
        self.data, self.trainer, self.gpt = self.run.datamodule, self.run.trainer, self.run.system.gpt
        self.sizes = self.gpt.config
        self.pretrained = cfg.checkpoint is not None or is_pretrained(cfg.model)
        self.device = self.trainer.strategy.root_device
        check_limits(self.trainer, self.run.datamodule, "train", "val", "test")
        build_callbacks(cfg.callbacks, self.run.system.metric_names(), logging=True)  # for the mistakes in them
        self.steps = total_steps(self.trainer)
        self.run.system.to(self.device)
        self.trainer.precision_plugin.convert_module(self.run.system)
        inputs, targets = (tensor.to(self.device) for tensor in next(iter(self.data.train_dataloader())))
        end = int((targets[:4] != IGNORE).any(dim=0).nonzero().max()) + 1  # of what takes a loss
        self.batch, self.few = (inputs, targets), (inputs[:4, :end][:, -32:], targets[:4, :end][:, -32:])
        self.flops = 6 * self.gpt.n_parameters + 12 * self.sizes["n_layer"] * self.sizes["n_embd"] * inputs.shape[1]
        self.weights = sum(weight.numel() * weight.element_size() for weight in self.gpt.parameters())
        trained = sum(weight.numel() for weight in self.gpt.parameters() if weight.requires_grad)
        self.trained = trained / self.gpt.n_parameters
        run_dir = OmegaConf.merge({"hydra": HydraConfig.get()}, OmegaConf.masked_copy(cfg, "run_dir")).run_dir
        self.place = next(folder for folder in Path(run_dir).absolute().parents if folder.is_dir())  # on its disk

    def system(self, gpt: GPT) -> LanguageModel:
        """A GPT as the run would train it, on its device; but the learning rate falls from the first step on."""
        optimizer = build(self.cfg.optimizer, "optimizer")
        system = build_system(self.cfg, gpt, optimizer, lambda step, _: 1 / (1 + step), self.data.tokenizer)
        return system.to(self.device)

    def loss(self, system: LanguageModel, batch: Batch) -> torch.Tensor:
        """The mean loss of a batch, in the precision of the run."""
        with self.trainer.precision_plugin.forward_context():
            return torch.div(*system.loss_sum(*batch))  # by the number of tokens

    def step(self, system: LanguageModel, optimizer: torch.optim.Optimizer, batch: Batch) -> tuple[float, float]:
        """A step of training as the Trainer does it; returns the loss before it, and how many seconds it took."""
        started = time.perf_counter()
        loss = self.loss(system, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(system.parameters(), self.trainer.gradient_clip_val or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item(), time.perf_counter() - started

    def perturbed(self) -> GPT:
        """A copy of the GPT with noise on all weights: a branch initialised at zero would hide its errors."""
        gpt = copy.deepcopy(self.gpt)
        for weight in gpt.parameters():
            weight.data += 0.02 * torch.randn_like(weight)
        return gpt


def disk(trial: Trial) -> Finding:
    """Whether the disk has space for Checkpoint's files: three with two moments each, two with weights only."""
    need = round(11 * trial.weights * trial.trained) * bool(trial.cfg.callbacks.get("checkpoint"))
    check_writable(trial.place, need, "run_dir")  # raises an error that says what is off
    return Finding(True, f"{decimal(need)} for checkpoints, {decimal(shutil.disk_usage(trial.place).free)} free")


def memory(trial: Trial) -> Finding:
    """Whether memory suffices for gradients, two moments of each weight, and activations beside the weights."""
    tokens, vocabulary, system = trial.batch[0].numel(), trial.sizes["vocab_size"], Path("/proc/meminfo")
    kept = 60 if trial.trainer.precision.startswith("32") else 40  # bytes; Korthikanti et al. 2022 count 68 and 34
    activations = tokens * kept * trial.sizes["n_layer"] * trial.sizes["n_embd"]
    activations += 20 * vocabulary * min(tokens, chunk_rows(trial.device, vocabulary))
    need = round(3 * trial.weights * trial.trained) + activations
    text = (
        f"about {decimal(need)} beside {decimal(trial.weights)} of weights, {decimal(activations)} of it activations; "
    )
    if trial.device.type == "cuda":
        free = torch.cuda.mem_get_info(trial.device)[0]
    elif system.exists():
        free = 1024 * int(system.read_text().split("MemAvailable:")[1].split()[0])
    else:
        return Finding(None, text + "what is free isn't known")
    if (together := trial.trainer.num_devices) > 1 and trial.device.type != "cuda":  # they share the memory
        need, text = need * together, f"{text}{together} processes; "
    fix = "Halve datamodule.batch_size and double trainer.accumulate_grad_batches, or take a smaller model."
    return Finding(need < free, text + f"{decimal(free)} free", fix)


def causality(trial: Trial) -> Finding:
    """Whether changing the second half of a sequence changes logits of the first: a model must not see the future."""
    gpt, tokens = trial.perturbed().eval(), trial.batch[0][:1]
    middle = tokens.shape[1] // 2
    others = torch.cat([tokens[:, :middle], (tokens[:, middle:] + 1) % trial.sizes["vocab_size"]], dim=1)
    with trial.trainer.precision_plugin.forward_context():
        change = (gpt(tokens) - gpt(others)).detach().abs().amax(dim=(0, 2)).tolist()
    before, after = max(change[:middle], default=0.0), min(change[middle:])
    text = f"changing the second half changes logits of the first by {before:.2g}, of the second by {after:.2g}"
    return Finding(before <= 1e-5 < after, text, "A token may change what comes after it, and must: see the attention.")


@torch.no_grad()
def first_loss(trial: Trial) -> Finding:
    """Whether the first loss of an untrained model is about ln V; a pretrained one must be below that."""
    rows, chance = max(1, 1024 // trial.batch[0].shape[1]), math.log(trial.sizes["vocab_size"])
    loss = trial.loss(trial.system(trial.gpt).eval(), (trial.batch[0][:rows], trial.batch[1][:rows])).item()
    text = f"{loss:.3f} nats per token, where ln V is {chance:.3f}"
    ok = loss < chance if trial.pretrained else abs(loss - chance) <= 0.5 + 0.05 * chance  # ours are within 0.47
    return Finding(ok, text, "See how the weights are made, and whether the targets are the tokens that come next.")


def gradients(trial: Trial) -> Finding:
    """Whether every trainable parameter gets a gradient."""
    system = trial.system(trial.perturbed()).eval()
    trial.loss(system, trial.few).backward()
    grads = {name: weight.grad for name, weight in system.gpt.named_parameters() if weight.requires_grad}
    wrong = [name for name, grad in grads.items() if grad is None or not grad.any() or not grad.isfinite().all()]
    text = f"{len(grads) - len(wrong)} of {len(grads)} parameters have one that is finite and not zero"
    return Finding(bool(grads) and not wrong, text, f"See what the loss makes of {', '.join(wrong[:3])}.")


def resume(trial: Trial) -> Finding:
    """Whether two steps, and two more from a checkpoint on the run's disk, end where four do (on a GPU, nearly)."""
    sizes = {**trial.sizes, "n_layer": min(2, trial.sizes["n_layer"])}  # more would only take longer
    about_a_step = ("_target_", "accelerator", "precision", "plugins", "deterministic", "gradient_clip_val")

    def train(steps: int, callbacks: list[pl.Callback], checkpoint: Path | None = None) -> torch.Tensor:
        torch.manual_seed(trial.cfg.seed)
        system, data = trial.system(gpt_maker(trial.cfg.model)(**sizes)), copy.copy(trial.data)
        data.batch_size = 1
        settings = OmegaConf.masked_copy(trial.cfg.trainer, list(about_a_step))
        settings.update(max_steps=steps, devices=1 if trial.device.index is None else [trial.device.index])
        settings.update(enable_checkpointing=None, enable_progress_bar=False, enable_model_summary=False)
        trainer = build_trainer(settings, sizes["n_embd"], callbacks=callbacks, logger=False, limit_val_batches=0)
        trainer.fit(system, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return torch.nn.utils.parameters_to_vector(system.gpt.parameters()).detach().cpu()

    whole = train(4, [])
    with tempfile.TemporaryDirectory(prefix=".check-", dir=trial.place) as folder:
        file = Path(folder, "last.ckpt")
        half = train(2, [Checkpoint(folder)])
        content, size, started = load_checkpoint(file), file.stat().st_size, time.perf_counter()
        write_checkpoint(content, file.with_name("again.ckpt"), 2)
        per_second = size / (time.perf_counter() - started)
        both = train(4, [Checkpoint(folder)], file)
    apart = ((both - whole).norm() / (whole - half).norm()).item()
    size = round(size * trial.trained * trial.gpt.n_parameters / len(whole))
    text = f"2 + 2 steps {f'differ by {apart:.1g} of their way from' if apart else 'equal'} 4 at once; "
    text += f"a save is {decimal(size)}, {span(size / per_second)} at {decimal(round(per_second))}/s"
    return Finding(
        apart <= (0 if trial.device.type == "cpu" else 0.1), text, "See what has state beside the checkpoint."
    )


def one_batch(trial: Trial) -> Finding:
    """Whether the model overfits one batch of a few sequences, at the full learning rate. Changes the weights."""
    system, started, steps = trial.system(trial.gpt).eval(), time.perf_counter(), 0
    optimizer, first = system.make_optimizer(), trial.loss(system, trial.few).item()
    loss, aim, worst = first, max(first * (0.9 if trial.pretrained else 0.5), 0.1), 5 * max(first, 1.0)
    while aim < loss < worst and steps < STEPS and time.perf_counter() - started < OVERFIT:
        loss, steps = trial.step(system, optimizer, trial.few)[0], steps + 1
    text = f"loss {first:.3f} to {loss:.3g} in {steps} steps, {span(time.perf_counter() - started)}"
    if aim < loss < worst and steps < ENOUGH:
        return Finding(None, f"not decided: {text}")
    return Finding(loss <= aim, text, f"{'Raise' if loss < first else 'Lower'} optimizer.lr, or see model and data.")


def speed(trial: Trial) -> Finding:
    """How long the run will take without validation and torch.compile, by real steps. Changes the weights."""
    system, (B, T), rows, times = trial.system(trial.gpt), trial.batch[0].shape, 1, list[float]()
    optimizer = system.make_optimizer()
    while len(times) < 2 or (sum(times) < TIMED and len(times) < 50):
        times.append(trial.step(system, optimizer, (trial.batch[0][:rows], trial.batch[1][:rows]))[1])
        if rows < B and times[-1] < TIMED / 2:  # time is left for more of the batch
            rows, times = min(B, 2 * rows), []
    sequences = B * trial.trainer.accumulate_grad_batches
    seconds, tokens = (
        sequences / rows * torch.tensor(times[1:]).median().item(),
        sequences * T * trial.trainer.world_size,
    )
    text = f"about {span(seconds * trial.steps)} for {trial.steps:,} steps of {tokens:,} tokens, {seconds:.3g} s each\n"
    text += f"{tokens / seconds:,.0f} tokens/s, {trial.flops * tokens / seconds / 1e9:,.1f} GFLOP/s"
    if trial.trainer.world_size > 1:
        text += f", if all {trial.trainer.world_size} processes are as fast as this one and wait for nothing"
    return Finding(True, text + f", by {rows} of {B} sequences" * (rows < B))


def span(seconds: float) -> str:
    """A duration in its two largest units: 3 h 20 min."""
    for long, unit, short, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= long:
            return f"{seconds // long:.0f} {unit} {seconds % long // short:.0f} {part}"
    return f"{seconds:.2g} s"


def run_task(cfg: DictConfig, started: float) -> None:
    """Print what each check says of the run that this config would be. Raises UserError if something is off."""
    trial, off = Trial(cfg), list[str]()
    title = f"GPT of {trial.gpt.n_parameters:,} parameters, {trial.flops / 1e6:,.1f} MFLOP a token"
    place = f"{trial.device} in {trial.trainer.precision}, {torch.get_num_threads()} threads"
    if (processes := trial.trainer.world_size) > 1:
        place += f"; the figures are of one of {processes} processes"
    console.print(f"{title}, on {place}")
    for check in (disk, memory, causality, first_loss, gradients, resume, one_batch, speed):
        name = check.__name__.replace("_", " ")
        try:
            skip = "memory" in off or (check is resume and "disk" in off)
            finding = Finding(None, "not tried") if skip else check(trial)
        except Exception as error:
            known = error if isinstance(error, UserError) else resource_error(error)
            if known is None:
                raise
            finding = Finding(False, known.what, known.fix)
        word, style = {True: ("ok", None), False: ("off", "bold red"), None: ("--", "yellow")}[finding.ok]
        text = finding.text if finding.ok is not False else f"{finding.text}\n{finding.fix}"
        console.print(f"{name:<11}{word:<4}" + text.replace("\n", f"\n{'':<15}"), style=style, markup=False)
        off += [name] * (finding.ok is False)
    if off:
        raise UserError(f"off: {', '.join(off)}", "task=check", "Fix that before a long run.")

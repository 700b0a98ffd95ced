"""Trainings of a tiny GPT in one process or in two, which tests compare; the two run `main` of this file.

python -m tests.processes FOLDER RANK PORT: starting two processes takes seconds, so all that needs two is done by one
pair of them, and what it came to lies in FOLDER.
"""

import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F
from torch.profiler import ProfilerActivity

from mingpt_lightning import GPT, LanguageModel
from mingpt_lightning.adapter import add_lora
from mingpt_lightning.checkpoint import Checkpoint, read_checkpoint
from mingpt_lightning.errors import DivergedError
from mingpt_lightning.muon import Muon
from mingpt_lightning.sharding import ShardedStrategy, shard
from mingpt_lightning.shards import whole
from projects.adder.datamodule import AdderDataModule
from tests.common import ROOT
from tests.layer_choices import CHOICES, SIZES

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adamw": partial(torch.optim.AdamW, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True),
    "muon": partial(Muon, weight_decay=0.1),
}
STRATEGIES: dict[str, Callable[[], Any]] = {"one": lambda: "auto", "ddp": lambda: "ddp", "fsdp": ShardedStrategy}


def train(
    folder: Path,
    strategy: str,
    steps: int = 4,
    *,
    optimizer: str = "adamw",
    accumulated: int = 1,
    callbacks: tuple[pl.Callback, ...] = (),
    start: Path | None = None,
    change: Callable[[GPT], Any] = lambda gpt: None,
    recompute: bool = False,
    **settings: Any,
) -> LanguageModel:
    """Train for `steps` steps of 8 sums in all, and leave last.ckpt and best.ckpt in `folder`. change: of the model."""
    processes = 1 if strategy == "one" else 2
    torch.manual_seed(0)
    data = AdderDataModule(batch_size=8 // processes // accumulated)
    gpt = GPT(data.vocab_size, data.block_size, n_layer=2, n_head=2, n_embd=16)
    change(gpt)
    make = OPTIMIZERS[optimizer]
    system = LanguageModel(gpt, make, lambda step, total: 1.0, data.tokenizer, recompute=recompute)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=processes,
        strategy=STRATEGIES[strategy](),
        accumulate_grad_batches=accumulated,
        use_distributed_sampler=False,
        callbacks=[Checkpoint(str(folder)), *callbacks],
        **{"gradient_clip_val": 0.5, "val_check_interval": 2 * accumulated, "check_val_every_n_epoch": None} | settings,
        num_sanity_val_steps=0,
        limit_val_batches=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(system, datamodule=data, ckpt_path=start, weights_only=True)
    return system


def in_two_processes(folder: Path) -> None:
    """Run `main` in two processes; what the first one found is in found.json."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = []
    for rank in ("0", "1"):
        command = [sys.executable, "-m", "tests.processes", str(folder), rank, port]
        with (folder / f"rank-{rank}.log").open("w") as log:
            both.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log))
    try:
        codes = [process.wait(timeout=300) for process in both]
    finally:
        for process in both:
            process.kill()
    assert codes == [0, 0], (folder / "rank-0.log").read_text() + (folder / "rank-1.log").read_text()


def main(folder: Path, rank: str, port: str) -> None:
    """All that tests need two processes for, in an environment as torchrun makes it."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "tests", "GROUP_RANK": "0"}
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    found: dict[str, Any] = {}
    for strategy in ("ddp", "fsdp"):
        for optimizer in OPTIMIZERS:
            for accumulated in (1, 2):
                place = folder / f"{strategy}-{optimizer}-{accumulated}"
                train(place, strategy, optimizer=optimizer, accumulated=accumulated)
            train(folder / f"half-{strategy}-{optimizer}", strategy, 2, optimizer=optimizer)
            start = folder / f"half-one-{optimizer}" / "last.ckpt"
            train(folder / f"one-to-{strategy}-{optimizer}", strategy, optimizer=optimizer, start=start)
    for before, after in (("ddp", "fsdp"), ("fsdp", "ddp"), ("fsdp", "fsdp")):
        for optimizer in OPTIMIZERS:
            start = folder / f"half-{before}-{optimizer}" / "last.ckpt"
            train(folder / f"{before}-to-{after}-{optimizer}", after, optimizer=optimizer, start=start)
    for strategy in ("ddp", "fsdp"):
        train(folder / f"{strategy}-recompute", strategy, recompute=True)
        train(folder / f"{strategy}-bf16", strategy, precision="bf16-true")
        train(folder / f"{strategy}-value", strategy, gradient_clip_algorithm="value", gradient_clip_val=0.01)
        train(folder / f"{strategy}-adapter", strategy, change=partial(add_lora, r=2))
    pairs = (("ddp", "adamw"), ("fsdp", "adamw"), ("fsdp", "muon"))
    found["traffic"] = {
        f"{strategy}-{optimizer}": traffic(folder, strategy, optimizer) for strategy, optimizer in pairs
    }
    found["best"] = best_weights_are_loaded(folder)
    found["divergence"] = divergence(folder)
    found["choices"] = {name: shards_alike(choice) for name, choice in choices().items()}
    if int(os.environ["LOCAL_RANK"]) == 0:
        (folder / "found.json").write_text(json.dumps(found))


class Traffic(pl.Callback):
    """Counts the numbers that this process hands to each kind of exchange in the third step, in `sent`."""

    def __init__(self) -> None:
        self.sent: dict[str, int] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            self.profiler = torch.profiler.profile(activities=[ProfilerActivity.CPU], record_shapes=True).__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            self.profiler.__exit__(None, None, None)
            for event in self.profiler.events() or []:
                if event.name in ("gloo:all_reduce", "gloo:all_gather"):
                    kind = event.name.removeprefix("gloo:")
                    self.sent[kind] = self.sent.get(kind, 0) + math.prod(event.input_shapes[0])


def traffic(folder: Path, strategy: str, optimizer: str) -> dict[str, int]:
    """What a step of a training exchanges; and the number of its parameters, and of those in hidden matrices."""
    counter = Traffic()
    gpt = train(folder / "traffic", strategy, optimizer=optimizer, callbacks=(counter,)).gpt
    hidden = sum(weight.numel() for weight in gpt.blocks.parameters() if weight.dim() == 2)
    return {**counter.sent, "parameters": gpt.n_parameters, "hidden": hidden}


def best_weights_are_loaded(folder: Path) -> float:
    """How far the weights of best.ckpt are from those that a divided model has after loading it."""
    system = train(folder / "best", "fsdp")
    content = read_checkpoint(folder / "best" / "best.ckpt")
    system.trainer.strategy.load_model_state_dict(content)
    weights = system.gpt.named_parameters()
    return max((whole(w.detach()) - content["state_dict"][f"gpt.{n}"]).abs().max().item() for n, w in weights)


def divergence(folder: Path) -> str:
    """What is said of a divided training whose loss is no number."""

    def break_it(gpt: GPT) -> None:
        gpt.norm.weight.data[0] = float("nan")

    try:
        train(folder / "diverged", "fsdp", change=break_it)
    except DivergedError as error:
        return str(error)
    return "nothing"


def choices() -> dict[str, dict[str, Any]]:
    """The named choices of GPT, with sizes."""
    return {name: {**SIZES, **choice} for name, choice in CHOICES.items()}


def shards_alike(arguments: dict[str, Any]) -> bool:
    """Whether a divided GPT has the loss, the gradients and the greedy answers of one that is not."""
    rank, tokens = int(os.environ["LOCAL_RANK"]), torch.arange(1, 9).repeat(4, 1)
    torch.manual_seed(0)
    gpt = GPT(**arguments)
    for weight in gpt.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    twin = GPT(**arguments)
    twin.load_state_dict(gpt.state_dict())
    shard(twin, init_device_mesh("cpu", (2,)))
    answers, grads = [], []
    for model, rows in ((gpt, tokens), (twin, tokens[2 * rank : 2 * rank + 2])):
        logits = model.logits(model.hidden(rows[:, :-1]))
        F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
        grads.append([whole(weight.grad) for weight in model.parameters()])
        answers.append(model.eval().generate(tokens[:1, :3], 12, temperature=0).tolist())
    close = all(torch.allclose(ours, its, rtol=1e-4, atol=1e-6) for ours, its in zip(*grads, strict=True))
    return close and answers[0] == answers[1]


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])

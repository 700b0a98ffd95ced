"""Training GPT-2's shape (124 M parameters) on the CPU: tokens a second and peak memory, beside the peers.

    python -m benchmarks.train_gpt2 --peers FOLDER                 batch 2 of 1,024 tokens
    python -m benchmarks.train_gpt2 --tiny --peers FOLDER          a small model: does the script run?

Ours is `LanguageModel` in Lightning's Trainer, with the settings of `python main.py model=gpt2`. Peers come as shipped,
and tuned: with fused AdamW, torch.compile, and bfloat16 autocast where this CPU is faster in it. All start from the
same weights and read the same random tokens, with AdamW at 1e-4, no weight decay, no dropout, gradients clipped at 1.
Losses must agree before anything is timed: in float32 within 1e-4 over five steps of a small model, and at full size
within 0.05 at every step. minGPT does not tie its head, so only its first losses can agree.
"""

import argparse
import itertools
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Table, Worker, machine, parser, ratio, report, serve
from benchmarks.peers import PEERS, Sizes, available, build, ours, transformers
from benchmarks.roofline import product_rate
from mingpt_lightning.device import fast_dtype

FLOPS = 855.2e6  # for a token of GPT-2 at 1,024 tokens, forward and backward: 6 N + 12 L H Q T (nanoGPT, PaLM)
CONTESTANTS = ["nanoGPT", "nanoGPT tuned", "nanoGPT compiled", "transformers", "transformers tuned", "minGPT"]
TINY = Sizes(2, 2, 64, 500, 64)


def batch(step: int, rows: int, length: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """The random tokens of a step, and the same shifted by one."""
    tokens = torch.randint(vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(step))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def serve_ours(arguments: argparse.Namespace, sizes: Sizes) -> None:
    """Train as `main.py` does; a turn is `--steps` optimizer steps."""
    import pytorch_lightning as pl

    from mingpt_lightning import LanguageModel
    from mingpt_lightning.device import keep_memory, set_threads
    from mingpt_lightning.optim import constant

    gpt = ours(transformers(sizes))
    set_threads(torch.device("cpu"), sizes.n_embd)
    keep_memory()
    fast = fast_dtype(torch.device("cpu"), sizes.n_embd) == torch.bfloat16 and not arguments.float32
    optimizer = partial(torch.optim.AdamW, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    system = LanguageModel(gpt, optimizer, constant)

    class Batches(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return (batch(step, arguments.batch, arguments.length, sizes.vocab_size) for step in itertools.count())

    class Turns(pl.Callback):
        """Reports after the first step, then after each turn, and waits for the next."""

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            self.losses.append(float(system.train_loss))  # type: ignore[arg-type]
            if len(self.losses) == (arguments.steps if trainer.global_step > 1 else 1):
                report(seconds=time.perf_counter() - self.start, losses=self.losses)
                trainer.should_stop = not sys.stdin.readline()
                self.on_train_start()

        def on_train_start(self, *_: Any) -> None:
            self.start, self.losses = time.perf_counter(), list[float]()

    trainer = pl.Trainer(
        accelerator="cpu",
        precision="bf16-mixed" if fast else "32-true",
        max_steps=10**6,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Turns()],
    )
    warnings.simplefilter("ignore")  # about the missing logger and workers of the loader
    trainer.fit(system, torch.utils.data.DataLoader(Batches(), batch_size=None))


def peer_step(arguments: argparse.Namespace, sizes: Sizes) -> Callable[[int], float]:
    """One optimizer step of a peer, on the batch of that number; returns its loss."""
    name, _, kind = arguments.worker.partition(" ")
    model = build(name, arguments.peers, transformers(sizes))
    model.train()
    if kind == "compiled":
        model = torch.compile(model)
    fused, fast = {"fused": True} if kind else {}, fast_dtype(torch.device("cpu"), sizes.n_embd) == torch.bfloat16
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, **fused)

    def step(number: int) -> float:
        inputs, targets = batch(number, arguments.batch, arguments.length, sizes.vocab_size)
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(kind) and fast and not arguments.float32):
            loss = PEERS[name].loss(model, inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def serve_peer(arguments: argparse.Namespace, sizes: Sizes) -> None:
    """Train a peer; a turn is `--steps` steps."""
    step, numbers = peer_step(arguments, sizes), itertools.count()

    def turn() -> dict[str, Any]:
        return {"losses": [step(next(numbers)) for _ in range(arguments.steps)]}

    serve(turn, losses=[step(next(numbers))])


def far_apart(ours: list[float], theirs: list[float]) -> float:
    """The largest difference of two loss curves over their common steps."""
    return max(abs(mine - other) for mine, other in zip(ours, theirs, strict=False))


def start(name: str, options: argparse.Namespace, *more: str) -> Worker:
    sizes = ["--batch", str(options.batch), "--length", str(options.length), "--steps", str(options.steps)]
    return Worker("benchmarks.train_gpt2", name, "--peers", str(options.peers), *sizes, *more)


def check_small(options: argparse.Namespace, peers: list[str]) -> None:
    """Float32 losses of a small model over five steps must agree within 1e-4."""
    small = argparse.Namespace(**{**vars(options), "batch": 2, "length": 64, "steps": 4})
    curves = {}
    for name in ["ours", *(name for name in peers if " " not in name)]:
        worker = start(name, small, "--tiny", "--float32")
        curves[name] = worker.ready["losses"] + worker()["losses"]
        worker.stop()
    for name, curve in curves.items():
        length = 1 if name == "minGPT" else 5
        apart = far_apart(curves["ours"][:length], curve[:length])
        if apart > 1e-4:
            sys.exit(f"{name} has other losses than ours: {curve} and {curves['ours']}")
    print(f"losses of {', '.join(curves)} agree in float32")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--batch", type=int, default=2, help="sequences")
    options.add_argument("--length", type=int, default=1024, help="tokens of each")
    options.add_argument("--steps", type=int, default=2, help="optimizer steps in a turn")
    options.add_argument("--only", nargs="+", default=CONTESTANTS, choices=CONTESTANTS, metavar="PEER")
    options.add_argument("--worker", help=argparse.SUPPRESS)
    options.add_argument("--float32", action="store_true", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.worker:
        sys.stdout = sys.stderr
    if arguments.tiny:
        arguments.length = min(arguments.length, 64)
    sizes = TINY if arguments.tiny else Sizes()
    if arguments.worker:
        (serve_ours if arguments.worker == "ours" else serve_peer)(arguments, sizes)
        return

    print(machine())
    peers = [name for name in available(arguments.peers, CONTESTANTS) if name in arguments.only]
    check_small(arguments, peers)
    dtype = fast_dtype(torch.device("cpu"), sizes.n_embd)
    peak = product_rate((2048, 2048, 2048), dtype)
    print(f"product of 2048x2048x2048 in {dtype}: {peak / 1e9:.0f} GFLOP/s")
    tiny = ["--tiny"] * arguments.tiny
    ours = start("ours", arguments, *tiny)
    tokens = arguments.batch * arguments.length * arguments.steps
    table = Table(
        arguments, "train_gpt2", "contestant", "tokens/s", "of the product's rate", "peak GB", "takes times ours"
    )
    everything: list[float] = []
    curve = list(ours.ready["losses"])
    rss = 0
    for name in peers:
        other = start(name, arguments, *tiny)
        their_curve = list(other.ready["losses"])
        mine, theirs = [], []
        for _ in range(arguments.rounds if name != "minGPT" else min(arguments.rounds, 3)):
            for worker, times, losses in ((ours, mine, curve), (other, theirs, their_curve)):
                turn = worker()
                times.append(turn["seconds"])
                losses += turn["losses"]
                rss = turn["rss"] if worker is ours else rss
        if far_apart(curve[: 1 if name == "minGPT" else None], their_curve) > 0.05:
            sys.exit(f"{name} has other losses than ours: {their_curve} and {curve}")
        rate = tokens / median(theirs)
        table.row(name, rate, rate * FLOPS / peak, turn["rss"] / 1e9, ratio(mine, theirs), seconds=theirs)
        everything += mine
        other.stop()
    if everything:
        rate = tokens / median(everything)
        table.row("ours", rate, rate * FLOPS / peak, rss / 1e9, "1", seconds=everything)
    ours.stop()


if __name__ == "__main__":
    main()

"""What the worker processes of the scaling benchmark do: train, load batches, generate; each a function of settings."""

import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.common import allocated, peak_rss, seconds, serve
from mingpt_lightning import GPT
from mingpt_lightning.device import fast_dtype, keep_memory
from mingpt_lightning.inference import optimize_for_inference
from mingpt_lightning.loss import cross_entropy_sum
from mingpt_lightning.optim import parameter_groups

Settings = dict[str, Any]
Turn = Callable[[], dict[str, Any]]

TINY = {"n_layer": 2, "n_head": 2, "n_embd": 64, "vocab_size": 64}


def sizes(settings: Settings) -> peers.Sizes:
    """The sizes of a model; without a length "T" it has 1,024 positions."""
    named = {name: settings[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
    return peers.Sizes(**named, block_size=settings.get("T", 1024))


def training(settings: Settings) -> Turn:
    """Training steps of a small GPT: the seconds of the shortest."""
    T, rows = settings["T"], settings["rows"]
    narrow = fast_dtype(torch.device("cpu"), settings["n_embd"]) == torch.bfloat16
    if "mingpt" in settings:
        gpt: Any = peers.mingpt(Path(settings["mingpt"]), sizes(settings))
        optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-4, fused=True)
    else:
        keep_memory()
        gpt = GPT(**sizes(settings)._asdict())
        optimizer = torch.optim.AdamW(parameter_groups(gpt), lr=1e-4, fused=True)
    tokens = torch.randint(settings["vocab_size"], (rows, T + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def loss() -> Tensor:
        if "mingpt" in settings:
            return peers.loss(gpt, inputs, targets)
        return cross_entropy_sum(gpt, gpt.hidden(inputs), targets) / targets.numel()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return lambda: {"seconds": min(seconds(step) for _ in range(settings["steps"]))}


def windows(settings: Settings) -> Turn:
    """The loader of a text: the same batches in every turn."""
    from mingpt_lightning.datamodule import BatchLoader, WindowDataset
    from projects.text.datamodule import map_tokens

    tokens = map_tokens(Path(settings["file"]), np.dtype(np.uint16))
    dataset = WindowDataset(tokens, block_size=1024, stride=1)
    loader = BatchLoader(dataset, batch_size=16, shuffle_seed=0)

    def read(batches: int) -> None:
        loader.step = 0
        for _ in islice(loader, batches):
            pass

    def turn() -> dict[str, Any]:
        passes = [seconds(lambda: read(settings["batches"])) / settings["batches"] for _ in range(5)]
        return {"seconds": min(passes), "first": passes[0], "allocated": allocated()}

    read(1)
    return turn


def sums(settings: Settings) -> Turn:
    """The adder's batches of 256, for each number of digits."""
    from mingpt_lightning.datamodule import BatchLoader
    from projects.adder.datamodule import AdderDataModule

    def make_batches(loader: BatchLoader) -> None:
        loader.batches(0, loader.steps_at_once)  # at once, as training does

    def point(ndigit: int) -> dict[str, Any]:
        startup = min(seconds(lambda: AdderDataModule(ndigit, 256)) for _ in range(1000))
        loader = AdderDataModule(ndigit, 256).train_dataloader()
        passed = min(seconds(lambda: make_batches(loader)) for _ in range(20))
        return {"startup": startup, "seconds": passed / loader.steps_at_once}

    def memory(ndigit: int) -> dict[str, Any]:
        tracemalloc.start()
        datamodule = AdderDataModule(ndigit, 256)
        made = tracemalloc.get_traced_memory()[1]
        make_batches(datamodule.train_dataloader())
        batch = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return {"startup bytes": made, "batch bytes": batch}

    return lambda: {"points": [{"digits": n, **point(n), **memory(n)} for n in settings["digits"]]}


def generation(settings: Settings) -> Turn:
    """Greedy generation: the seconds of each case, (rows, new tokens), after a prompt of 16."""
    torch.manual_seed(0)
    gpt = optimize_for_inference(GPT(**sizes(settings)._asdict()), "float32")

    def case(rows: int, new: int) -> float:
        prompts = torch.randint(settings["vocab_size"], (rows, 16))
        return seconds(lambda: gpt.generate(prompts, new, temperature=0))

    return lambda: {"cases": [case(rows, new) for rows, new in settings["cases"]]}


WORK: dict[str, Callable[[Settings], Turn]] = {
    "training": training,
    "windows": windows,
    "sums": sums,
    "generation": generation,
}


def work(name: str, settings: Settings) -> None:
    """Run as a worker."""
    torch.set_num_threads(1)
    if name == "training":  # what PyTorch loads at its first step is not part of the memory
        training({**TINY, "T": 4, "rows": 1, "steps": 1})()
    elif name in ("windows", "sums"):  # nor is Lightning
        import projects.adder.datamodule  # noqa: F401
    before = peak_rss()
    serve(WORK[name](settings), before=before)

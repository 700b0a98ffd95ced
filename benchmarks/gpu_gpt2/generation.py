"""Greedy generation with a static cache in a CUDA graph, beside `gpt.generate` and nanoGPT."""

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.common import Table, ratio
from benchmarks.gpu_gpt2.device import CUDA, DEVICE, captured, timed
from benchmarks.gpu_gpt2.plan import Plan
from benchmarks.peers import nanogpt_like
from mingpt_lightning import GPT
from mingpt_lightning.inference import optimize_for_inference


class StaticCache:
    """Stands in for `mingpt_lightning.cache.Cache` where every step has to have the same shapes and addresses.

    The prompt is prefilled at once; then each row grows by a token at `position`, which is on the device.
    """

    def __init__(self, gpt: GPT, rows: int, size: int):
        config, weight = gpt.config, gpt.token_embedding.weight
        shape = rows, config["n_head"], size, config["n_embd"] // config["n_head"]
        make = partial(torch.zeros, shape, dtype=weight.dtype, device=weight.device)
        self.layers = [(make(), make()) for _ in range(config["n_layer"])]
        self.position = torch.zeros(1, dtype=torch.long, device=weight.device)
        self.places = torch.arange(size, device=weight.device)

    def advance(self, T: int) -> Tensor:
        self.prefill = T > 1
        self.now = self.places[:T] if self.prefill else self.position
        self.mask = (self.places <= self.position)[None, None, None]
        return self.now

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        keys, values = self.layers[layer]
        keys.index_copy_(2, self.now, k)
        values.index_copy_(2, self.now, v)
        return (k, v, None) if self.prefill else (keys, values, self.mask)


class Decoder:
    """Greedy generation whose steps are identical: each reads `tokens` at `position` and writes the next place."""

    def __init__(self, gpt: GPT, rows: int, size: int, compiled: bool):
        self.gpt, self.cache = gpt, StaticCache(gpt, rows, size)
        self.tokens = torch.zeros(rows, size, dtype=torch.long, device=self.cache.places.device)
        step = torch.compile(next_token, dynamic=False, fullgraph=True) if compiled else next_token
        with torch.no_grad():
            self.step = captured(partial(step, gpt, self.cache, self.tokens))

    @torch.no_grad()
    def __call__(self, prompt: Tensor, new: int) -> Tensor:
        T = prompt.shape[1]
        self.tokens[:, :T] = prompt
        self.tokens[:, T] = likeliest(self.gpt, self.gpt.hidden(prompt, cast(Any, self.cache)))
        self.cache.position.fill_(T)
        for _ in range(new - 1):
            self.step()
        return self.tokens[:, : T + new].clone()


def next_token(gpt: GPT, cache: StaticCache, tokens: Tensor) -> None:
    """Append the next token to every row."""
    hidden = gpt.hidden(tokens.index_select(1, cache.position), cast(Any, cache))
    cache.position.add_(1)
    tokens.index_copy_(1, cache.position, likeliest(gpt, hidden)[:, None])


def likeliest(gpt: GPT, hidden: Tensor) -> Tensor:
    """The most likely next token of each row."""
    return gpt.logits(hidden[:, -1]).float().argmax(dim=-1)


def eager(gpt: GPT, prompt: Tensor, new: int) -> Tensor:
    return gpt.generate(prompt, new, temperature=0)


def nanogpt_generate(model: Any, prompt: Tensor, new: int) -> Tensor:
    with torch.autocast(DEVICE.type, torch.bfloat16):
        return model.generate(prompt, new, top_k=1)


def decode(options: argparse.Namespace, plan: Plan, peers: Path | None) -> list[str]:
    """New tokens a second; the time includes prefill."""
    gpt = plan.gpt().eval()
    with torch.no_grad():  # with initial weights, a GPT repeats its last token for ever
        for weight in gpt.blocks.parameters():
            if weight.dim() > 1:
                weight.mul_(10)
    peer_model = None if peers is None else nanogpt_like(gpt, peers).eval().to(DEVICE)
    narrow = optimize_for_inference(copy.deepcopy(gpt).to(DEVICE), "bfloat16")
    gpt = optimize_for_inference(gpt.to(DEVICE), "float32")
    size = plan.prompt + plan.new
    prompts = torch.randint(plan.model.vocab_size, (max(plan.rows), plan.prompt), device=DEVICE)
    graph = "CUDA graph" if CUDA else "without a CUDA graph"
    kinds = {f"static cache, {graph}": False} | ({f"static cache, compiled, {graph}": True} if options.compile else {})

    expected = eager(gpt, prompts[:2], plan.new)
    failed = []
    for kind, compiled in kinds.items():
        equal = torch.equal(Decoder(gpt, 2, size, compiled)(prompts[:2], plan.new), expected)
        different = len(expected[:, plan.prompt :].unique())
        print(f"\n{kind}, float32: {'the' if equal else 'NOT the'} tokens of generate ({different} different ones)")
        failed += [f"the tokens of {kind}"] * (not equal)

    columns = "contestant", "rows", "tokens/s", "ms/step", "static cache is faster", "equal tokens"
    table = Table(options, "gpu_gpt2 decode", *columns)
    fastest = {}
    for rows in plan.rows:
        prompt = prompts[:rows]
        contestants: dict[str, Callable[[Tensor, int], Tensor]] = {
            f"ours, {kind}": Decoder(narrow, rows, size, compiled) for kind, compiled in kinds.items()
        }
        contestants["ours, generate"] = partial(eager, narrow)
        if peer_model is not None:
            contestants["nanoGPT"] = partial(nanogpt_generate, peer_model)
        written = {name: run(prompt, plan.new)[:, plan.prompt :] for name, run in contestants.items()}
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(options.rounds):
            for name, run in contestants.items():
                times[name].append(timed(partial(run, prompt, plan.new)))
        static = {name: values for name, values in times.items() if "static" in name}
        best_times = min(static.values(), key=median)
        fastest[rows] = rows * plan.new / median(best_times)
        for name, values in times.items():
            equal_share = (written[name] == written["ours, generate"]).float().mean().item()
            speed = rows * plan.new / median(values)
            faster = ratio(best_times, values)
            table.row(name, rows, speed, 1e3 * rows / speed, faster, f"{equal_share:.0%}", rounds=values)
    table = Table(options, "gpu_gpt2 targets of generation", "target", "wanted", "measured", "met")
    table.row("tokens/s of ours, static cache, one row", ">= 3,000", fastest[1], "yes" if fastest[1] >= 3000 else "no")
    return failed

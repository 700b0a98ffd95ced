"""Exact GPT-2 124M on one CUDA GPU, in sequences of 1,024 tokens: training beside nanoGPT, and generation.

    python -m benchmarks.gpu_gpt2 --peers FOLDER            FOLDER holds a checkout named nanoGPT
    python -m benchmarks.gpu_gpt2 --only train              one part: parity, train or decode
    python -m benchmarks.gpu_gpt2 --tiny                    a small model, also on a CPU: does the script run?

Parity comes first: from the same weights and batches, five steps of AdamW in bfloat16, none compiled, must give
nanoGPT's losses; with and without the columns that fill the vocabulary up to 50,304, which are cut off before the loss.

Training: all contestants have the same weights, batches, autocast and fused AdamW, and no gradient clipping. Ours is
the loss as a function of GPT, inputs and targets, compiled as a whole; nanoGPT is its model, compiled as it ships, with
its vocabulary of 50,304. Each has a process of its own, and a turn in every round, after which it gives its memory
back. The first step, which compiles, is told apart. Ours may not wait for the device in a timed step, or the benchmark
fails. Memory is the peak of what PyTorch allocated. MFU counts 855.2 MFLOP for a token and 989.4 TFLOP/s for the GPU.
The profiler names the attention kernels of a step; on Hopper they have to be cuDNN's, from PyTorch 2.11 on.

Generation: greedy. A step with a cache of fixed shape is captured in a CUDA graph and replayed, as it is and compiled;
beside it `gpt.generate`, and nanoGPT's, which has no cache. Beforehand the graph must write the same tokens as
`gpt.generate` in float32; in bfloat16, where near ties may fall either way, the share of equal ones is printed.
"""

import argparse
import contextlib
import copy
import gc
import io
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, cycle, repeat
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import Table, Worker, load, machine, parser, peak_rss, peer, ratio, serve
from mingpt_lightning import GPT
from mingpt_lightning.datamodule import Batch, BatchLoader, WindowDataset
from mingpt_lightning.inference import prepare
from mingpt_lightning.optim import parameter_groups

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
HOPPER = CUDA and torch.cuda.get_device_capability() == (9, 0)

FLOP_PER_TOKEN, PEAK_FLOPS = 855.2e6, 989.4e12
ADAMW: dict[str, Any] = {"lr": 6e-4, "betas": (0.9, 0.95), "weight_decay": 0.1}
PARITY_STEPS, PARITY = 5, 5e-2
OURS, PADDED, NANOGPT = "ours", "ours, padded vocabulary", "nanoGPT"

LossFunction = Callable[[Any, Tensor, Tensor], Tensor]


class Sizes(NamedTuple):
    """What is measured."""

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    vocab_size: int = 50257
    padded_size: int = 50304
    T: int = 1024
    parity_rows: int = 8
    batches: tuple[int, ...] = (16, 32, 64)
    steps: int = 20
    prompt: int = 32
    new: int = 224
    rows: tuple[int, ...] = (1, 32)

    def gpt(self, padded: bool = False) -> GPT:
        """A GPT, always with the same weights."""
        torch.manual_seed(0)
        gpt = GPT(self.vocab_size, self.T, n_layer=self.n_layer, n_head=self.n_head, n_embd=self.n_embd)
        if padded:
            gpt.grow_vocabulary(self.padded_size)
        return gpt


TINY = Sizes(2, 2, 64, 500, 512, 32, 4, (2, 4), 2, 8, 24, (1, 4))


# What is different with CUDA


def wait() -> None:
    """Until the device has done everything."""
    if CUDA:
        torch.cuda.synchronize()


def timed(function: Callable[[], object]) -> float:
    """How long a call takes, and what it left to the device."""
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


@contextlib.contextmanager
def no_waiting(strict: bool) -> Iterator[None]:
    """In here, what makes the host wait for the device is an error, if `strict`."""
    if CUDA and strict:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if CUDA:
            torch.cuda.set_sync_debug_mode("default")


def feed(loader: BatchLoader, T: int) -> Iterator[Batch]:
    """Endless batches on the device. With CUDA, each is copied while the step before computes.

    Two places on the device take turns. The copy comes from pinned memory, on a stream of its own, which waits for
    the step that used the place last; the host waits for nothing.
    """
    batches = chain.from_iterable(repeat(loader))
    if not CUDA:
        for inputs, targets in batches:
            yield inputs.contiguous(), targets.contiguous()
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    shape = loader.batch_size, T
    places = cycle([[torch.empty(shape, dtype=torch.long, device=DEVICE) for _ in range(2)] for _ in range(2)])

    def copy_next() -> list[Tensor]:
        place = next(places)
        side.wait_stream(main)
        with torch.cuda.stream(side):
            for there, here in zip(place, next(batches), strict=True):
                there.copy_(here.contiguous().pin_memory(), non_blocking=True)
        return place

    ahead = copy_next()
    while True:
        main.wait_stream(side)
        ready, ahead = ahead, copy_next()
        yield ready[0], ready[1]


def peak_memory() -> int:
    """The most memory since it was last asked for, in bytes; on a CPU, since the process began."""
    if not CUDA:
        return peak_rss()
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


def release() -> None:
    """Give memory that isn't in use back to the device."""
    wait()
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """What does the same as `step`, over and over; with CUDA, as one graph."""
    if not CUDA:
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles, chooses kernels and allocates, none of which a capture may do
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def attention_kernels(step: Callable[[], object]) -> list[str]:
    """The names of the attention kernels that a step runs on the GPU."""
    if not CUDA:
        return []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        wait()
    names = {event.key for event in profile.key_averages()}
    words = "sdpa", "flash", "fmha", "attention"
    # the compiler's own kernels have in their names what they were made of
    return sorted(n for n in names if not n.startswith("triton_") and any(word in n.lower() for word in words))


# Contestants in training


def random_text(sizes: Sizes, rows: int) -> BatchLoader:
    """Batches of random tokens, always the same."""
    length = 200 * sizes.T * max(sizes.batches)
    tokens = np.random.default_rng(0).integers(sizes.vocab_size, size=length, dtype=np.uint16)
    return BatchLoader(WindowDataset(tokens, sizes.T, stride=1), rows, shuffle_seed=0)


def our_loss(gpt: GPT, inputs: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """The mean loss; columns from `vocab_size` on are not there for it."""
    logits = gpt.logits(gpt.hidden(inputs))[..., :vocab_size]
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def nanogpt_loss(model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    return model(inputs, targets)[1]


def nanogpt_name(name: str) -> str:
    """What nanoGPT calls a weight of ours."""
    if name.startswith("norm."):
        return f"transformer.ln_f.{name.removeprefix('norm.')}"
    for ours, theirs in (
        ("token_embedding", "transformer.wte"),
        ("position_embedding", "transformer.wpe"),
        ("blocks", "transformer.h"),
        ("norm_", "ln_"),
        ("attn.qkv", "attn.c_attn"),
        ("attn.proj", "attn.c_proj"),
        ("mlp.fc", "mlp.c_fc"),
        ("mlp.proj", "mlp.c_proj"),
        ("head.", "lm_head."),
    ):
        name = name.replace(ours, theirs)
    return name


def nanogpt(file: Path, gpt: GPT) -> Any:
    """nanoGPT's model with the weights of ours."""
    config = gpt.config
    sizes = {name: config[name] for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")}
    module = load(file)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its size
        model = module.GPT(module.GPTConfig(**sizes, dropout=0.0, bias=True))
    model.load_state_dict({nanogpt_name(name): weight for name, weight in gpt.state_dict().items()})
    return model


class Contestant:
    """A model in training, on the device."""

    def __init__(self, name: str, sizes: Sizes, file: Path | None, *, padded: bool, compiled: bool):
        gpt = sizes.gpt(padded).to(DEVICE)
        self.strict = name != NANOGPT and compiled
        self.model: Any = gpt
        self.loss: LossFunction
        self.optimizer: torch.optim.Optimizer
        if name == NANOGPT:
            assert file is not None
            self.model, self.loss = nanogpt(file, gpt).to(DEVICE), nanogpt_loss
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it chooses
                settings = ADAMW["weight_decay"], ADAMW["lr"], ADAMW["betas"], DEVICE.type
                self.optimizer = self.model.configure_optimizers(*settings)
            self.model = torch.compile(self.model) if compiled else self.model
        else:
            self.optimizer = torch.optim.AdamW(parameter_groups(gpt), **ADAMW, fused=True)

            def loss(gpt: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
                return our_loss(gpt, inputs, targets, sizes.vocab_size)

            self.loss = torch.compile(loss, dynamic=False, fullgraph=True) if compiled else loss

    def step(self, batch: Batch) -> Tensor:
        """One step of training; its loss, which is not waited for."""
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = self.loss(self.model, *batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def losses(self, batches: Iterator[Batch], steps: int) -> list[float]:
        """The losses of some steps."""
        return torch.stack([self.step(next(batches)) for _ in range(steps)]).tolist()

    def seconds_per_step(self, batches: Iterator[Batch], steps: int) -> float:
        """How long a step takes, after two that fill the memory again. Ours doesn't wait for the device in between."""

        def run() -> None:
            with no_waiting(self.strict):
                for _ in range(steps):
                    self.step(next(batches))

        self.losses(batches, 2)
        return timed(run) / steps


def turns(name: str, sizes: Sizes, file: Path | None, rounds: int, compiled: bool) -> Iterator[dict[str, Any]]:
    """What a contestant does in its turns: for each batch size, a first one that compiles, then the timed ones."""
    for rows in sizes.batches:
        torch._dynamo.reset()  # or nanoGPT would be compiled for any batch size from the second one on
        contestant = Contestant(name, sizes, file, padded=name != OURS, compiled=compiled)
        yield from turns_of(contestant, feed(random_text(sizes, rows), sizes.T), sizes.steps, rounds)
        del contestant
        release()


def turns_of(contestant: Contestant, batches: Iterator[Batch], steps: int, rounds: int) -> Iterator[dict[str, Any]]:
    """The same for one batch size."""
    first = timed(lambda: contestant.step(next(batches)))
    losses = contestant.losses(batches, PARITY_STEPS)
    kernels = attention_kernels(lambda: contestant.step(next(batches)))
    release()
    yield {"first": first, "losses": losses, "kernels": kernels}
    for _ in range(rounds):
        peak_memory()
        step = contestant.seconds_per_step(batches, steps)
        peak = peak_memory()
        release()
        yield {"step": step, "peak": peak}


# The three parts: each gives what didn't hold


def difference(ours: list[float], theirs: list[float]) -> float:
    """The largest difference of two lists of losses."""
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def parity(options: argparse.Namespace, sizes: Sizes, file: Path | None) -> list[str]:
    """Do all contestants have the same losses?"""
    table = Table(options, "gpu_gpt2 parity", "contestant", "losses of five steps", "largest difference to ours")
    ours: list[float] = []
    failed = []
    for name, padded in ((OURS, False), (PADDED, True), (NANOGPT, False)):
        if name != NANOGPT or file is not None:
            contestant = Contestant(name, sizes, file, padded=padded, compiled=False)
            losses = contestant.losses(feed(random_text(sizes, sizes.parity_rows), sizes.T), PARITY_STEPS)
            ours = ours or losses
            table.row(name, ", ".join(f"{loss:.4f}" for loss in losses), difference(ours, losses))
            failed += [f"the losses of {name}"] * (not difference(ours, losses) < PARITY)
            if padded:
                weight = contestant.model.token_embedding.weight
                moved = contestant.optimizer.state[weight]["exp_avg"][sizes.vocab_size :].count_nonzero().item()
                failed += ["the columns beyond the vocabulary, which got a gradient"] * bool(moved)
            del contestant
            release()
    return failed


def train(options: argparse.Namespace, sizes: Sizes, file: Path | None) -> list[str]:
    """Tokens a second, and which attention kernels run."""
    names = [OURS, PADDED] + [NANOGPT] * (file is not None)
    flags = [flag for flag, on in (("--tiny", options.tiny), ("--compile", options.compile)) if on]
    common = [*flags, "--peers", str(options.peers.resolve()), "--rounds", str(options.rounds)]
    workers = {name: Worker("benchmarks.gpu_gpt2", name, *common) for name in names}
    columns = "contestant", "batch", "tokens/s", "MFU %", "peak GiB", "first step s", "nanoGPT takes times as long"
    table = Table(options, "gpu_gpt2 train", *columns)
    best: dict[str, list[float]] = {}  # the seconds for each token, of the best batch size
    kernels: set[str] = set()
    failed = []
    for rows in sizes.batches:
        firsts = {name: worker() for name, worker in workers.items()}
        reports = [{name: worker() for name, worker in workers.items()} for _ in range(options.rounds)]
        times = {name: [report[name]["step"] / (rows * sizes.T) for report in reports] for name in names}
        for name, values in times.items():
            best[name] = min(best.get(name, values), values, key=median)
            speed, peak = 1 / median(values), max(report[name]["peak"] for report in reports)
            others = ratio(values, times[NANOGPT]) if NANOGPT in times else ""
            mfu = "" if options.tiny else 100 * speed * FLOP_PER_TOKEN / PEAK_FLOPS
            more = {"rounds": values, "losses": firsts[name]["losses"]}
            table.row(name, rows, speed, mfu, peak / 2**30, firsts[name]["first"], others, **more)
            gap = difference(firsts[OURS]["losses"], firsts[name]["losses"])
            failed += [f"the losses of {name} at batch {rows}, {gap:.2g} from ours"] * (not gap < PARITY)
            kernels |= set(firsts[name]["kernels"] if name != NANOGPT else [])
    for worker in workers.values():
        worker.stop()
    failed += show_kernels(kernels, options.tiny)
    ours = min(best[OURS], best[PADDED], key=median)
    which = next(name for name in (OURS, PADDED) if best[name] is ours)
    table = Table(options, "gpu_gpt2 targets of training", "target", "wanted", "measured", "met")
    if NANOGPT in best:
        faster = median(best[NANOGPT]) / median(ours)
        table.row(f"{which} beside nanoGPT, each at its best batch", ">= 1.1", faster, answer(faster >= 1.1))
    table.row(f"tokens/s of {which}", ">= 500,000", 1 / median(ours), answer(1 / median(ours) >= 500_000))
    return failed


def show_kernels(kernels: set[str], tiny: bool) -> list[str]:
    """Say which attention kernels ran; they have to be cuDNN's where PyTorch prefers those."""
    print("\nattention kernels:", ", ".join(sorted(kernels)) or "none that the profiler saw", flush=True)
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    wanted = HOPPER and version >= (2, 11) and not tiny
    ok = any("cudnn" in name.lower() for name in kernels)
    return ["the attention kernels, which are not cuDNN's"] if wanted and not ok else []


def answer(met: bool) -> str:
    return "yes" if met else "no"


# Generation


class StaticCache:
    """Stands in for `mingpt_lightning.cache.Cache` where every step has to have the same shapes and addresses.

    The prompt is read at once; then each row grows by a token at `position`, which is on the device.
    """

    def __init__(self, gpt: GPT, rows: int, size: int):
        config, weight = gpt.config, gpt.token_embedding.weight
        shape = rows, config["n_head"], size, config["n_embd"] // config["n_head"]
        make = partial(torch.zeros, shape, dtype=weight.dtype, device=weight.device)
        self.layers = [(make(), make()) for _ in range(config["n_layer"])]
        self.position = torch.zeros(1, dtype=torch.long, device=weight.device)
        self.places = torch.arange(size, device=weight.device)

    def advance(self, T: int) -> Tensor:
        self.reading = T > 1
        self.now = self.places[:T] if self.reading else self.position
        self.mask = (self.places <= self.position)[None, None, None]
        return self.now

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        keys, values = self.layers[layer]
        keys.index_copy_(2, self.now, k)
        values.index_copy_(2, self.now, v)
        return (k, v, None) if self.reading else (keys, values, self.mask)


class Decoder:
    """Greedy generation of which every step is the same: from `tokens` at `position`, and back to there."""

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
    """Read a token of every row, and write the next one."""
    hidden = gpt.hidden(tokens.index_select(1, cache.position), cast(Any, cache))
    cache.position.add_(1)
    tokens.index_copy_(1, cache.position, likeliest(gpt, hidden)[:, None])


def likeliest(gpt: GPT, hidden: Tensor) -> Tensor:
    """The likeliest token after the last one of each row."""
    return gpt.logits(hidden[:, -1]).float().argmax(dim=-1)


def eager(gpt: GPT, prompt: Tensor, new: int) -> Tensor:
    return gpt.generate(prompt, new, temperature=0)


def nanogpt_generate(model: Any, prompt: Tensor, new: int) -> Tensor:
    with torch.autocast(DEVICE.type, torch.bfloat16):
        return model.generate(prompt, new, top_k=1)


def decode(options: argparse.Namespace, sizes: Sizes, file: Path | None) -> list[str]:
    """New tokens a second. The time includes the reading of the prompt."""
    gpt = sizes.gpt().eval()
    with torch.no_grad():  # with weights as they begin, a GPT repeats its last token for ever
        for weight in gpt.blocks.parameters():
            if weight.dim() > 1:
                weight.mul_(10)
    peer_model = None if file is None else nanogpt(file, gpt).eval().to(DEVICE)
    narrow, gpt = prepare(copy.deepcopy(gpt).to(DEVICE), "bfloat16"), prepare(gpt.to(DEVICE), "float32")
    size = sizes.prompt + sizes.new
    prompts = torch.randint(sizes.vocab_size, (max(sizes.rows), sizes.prompt), device=DEVICE)
    graph = "CUDA graph" if CUDA else "without a CUDA graph"
    kinds = {f"static cache, {graph}": False} | ({f"static cache, compiled, {graph}": True} if options.compile else {})

    expected = eager(gpt, prompts[:2], sizes.new)
    failed = []
    for kind, compiled in kinds.items():
        equal = torch.equal(Decoder(gpt, 2, size, compiled)(prompts[:2], sizes.new), expected)
        different = len(expected[:, sizes.prompt :].unique())
        print(f"\n{kind}, float32: {'the' if equal else 'NOT the'} tokens of generate ({different} different ones)")
        failed += [f"the tokens of {kind}"] * (not equal)

    columns = "contestant", "rows", "tokens/s", "ms/step", "static cache is faster", "equal tokens"
    table = Table(options, "gpu_gpt2 decode", *columns)
    fastest = {}
    for rows in sizes.rows:
        prompt = prompts[:rows]
        contestants: dict[str, Callable[[Tensor, int], Tensor]] = {
            f"ours, {kind}": Decoder(narrow, rows, size, compiled) for kind, compiled in kinds.items()
        }
        contestants["ours, generate"] = partial(eager, narrow)
        if peer_model is not None:
            contestants["nanoGPT"] = partial(nanogpt_generate, peer_model)
        written = {name: run(prompt, sizes.new)[:, sizes.prompt :] for name, run in contestants.items()}
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(options.rounds):
            for name, run in contestants.items():
                times[name].append(timed(partial(run, prompt, sizes.new)))
        static = {name: values for name, values in times.items() if "static" in name}
        best_times = min(static.values(), key=median)
        fastest[rows] = rows * sizes.new / median(best_times)
        for name, values in times.items():
            equal_share = (written[name] == written["ours, generate"]).float().mean().item()
            speed = rows * sizes.new / median(values)
            faster = ratio(best_times, values)
            table.row(name, rows, speed, 1e3 * rows / speed, faster, f"{equal_share:.0%}", rounds=values)
    table = Table(options, "gpu_gpt2 targets of generation", "target", "wanted", "measured", "met")
    table.row("tokens/s of ours, static cache, one row", ">= 3,000", fastest[1], answer(fastest[1] >= 3000))
    return failed


def main() -> None:
    arguments = parser(__doc__, rounds=3)
    arguments.add_argument("--compile", action="store_true", help="with --tiny: compile, which is slow on a CPU")
    arguments.add_argument("--only", choices=["parity", "train", "decode"], help="one of the three parts")
    arguments.add_argument("--worker", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if not CUDA and not options.tiny:
        print("There is no CUDA GPU here: nothing was measured.")
        return
    options.compile |= not options.tiny
    if not CUDA:
        torch.set_num_threads(1)
    sizes = TINY if options.tiny else Sizes()
    if options.worker:
        file = options.peers / "nanoGPT/model.py"
        plan = turns(options.worker, sizes, file, options.rounds, options.compile)
        serve(lambda: next(plan))
        return
    print(machine(), *([torch.cuda.get_device_name()] if CUDA else []), sep=", ")
    file = peer(options.peers, "nanoGPT", "model.py")
    failed: list[str] = []
    for part in (parity, train, decode):
        if options.only in (None, part.__name__):
            failed += part(options, sizes, file)
        if failed and part is parity:
            break
    if failed:
        sys.exit(f"\ndidn't hold: {'; '.join(failed)}")


if __name__ == "__main__":
    main()

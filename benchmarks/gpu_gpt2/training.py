"""Training beside nanoGPT: equal losses first, then tokens a second. Each part returns what did not hold."""

import argparse
from pathlib import Path
from statistics import median

import torch

from benchmarks.common import Table, Worker, ratio
from benchmarks.gpu_gpt2.contestants import NANOGPT, OURS, PADDED, PARITY_STEPS, Contestant, random_text
from benchmarks.gpu_gpt2.device import HOPPER, feed, release
from benchmarks.gpu_gpt2.plan import Plan

FLOP_PER_TOKEN, PEAK_FLOPS = 855.2e6, 989.4e12
PARITY = 5e-2


def difference(ours: list[float], theirs: list[float]) -> float:
    """The largest difference of two lists of losses."""
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def parity(options: argparse.Namespace, plan: Plan, peers: Path | None) -> list[str]:
    """Check that all contestants have the same losses."""
    table = Table(options, "gpu_gpt2 parity", "contestant", "losses of five steps", "largest difference to ours")
    ours: list[float] = []
    failed = []
    for name, padded in ((OURS, False), (PADDED, True), (NANOGPT, False)):
        if name != NANOGPT or peers is not None:
            contestant = Contestant(name, plan, peers, padded=padded, compiled=False)
            losses = contestant.losses(feed(random_text(plan, plan.parity_rows), plan.T), PARITY_STEPS)
            ours = ours or losses
            table.row(name, ", ".join(f"{loss:.4f}" for loss in losses), difference(ours, losses))
            failed += [f"the losses of {name}"] * (not difference(ours, losses) < PARITY)
            if padded:
                weight = contestant.model.token_embedding.weight
                moved = contestant.optimizer.state[weight]["exp_avg"][plan.model.vocab_size :].count_nonzero().item()
                failed += ["the columns beyond the vocabulary, which got a gradient"] * bool(moved)
            del contestant
            release()
    return failed


def train(options: argparse.Namespace, plan: Plan, peers: Path | None) -> list[str]:
    """Tokens a second, and which attention kernels run."""
    names = [OURS, PADDED] + [NANOGPT] * (peers is not None)
    flags = [flag for flag, on in (("--tiny", options.tiny), ("--compile", options.compile)) if on]
    common = [*flags, "--peers", str(options.peers.resolve()), "--rounds", str(options.rounds)]
    workers = {name: Worker("benchmarks.gpu_gpt2", name, *common) for name in names}
    columns = "contestant", "batch", "tokens/s", "MFU %", "peak GiB", "first step s", "nanoGPT takes times as long"
    table = Table(options, "gpu_gpt2 train", *columns)
    best: dict[str, list[float]] = {}  # the seconds for each token, of the best batch size
    kernels: set[str] = set()
    failed = []
    for rows in plan.batches:
        firsts = {name: worker() for name, worker in workers.items()}
        reports = [{name: worker() for name, worker in workers.items()} for _ in range(options.rounds)]
        times = {name: [report[name]["step"] / (rows * plan.T) for report in reports] for name in names}
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
    """Print which attention kernels ran; on Hopper with PyTorch 2.11 they must be cuDNN's."""
    print("\nattention kernels:", ", ".join(sorted(kernels)) or "none that the profiler saw", flush=True)
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    wanted = HOPPER and version >= (2, 11) and not tiny
    ok = any("cudnn" in name.lower() for name in kernels)
    return ["the attention kernels, which are not cuDNN's"] if wanted and not ok else []


def answer(met: bool) -> str:
    return "yes" if met else "no"

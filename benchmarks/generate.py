"""Generation beside transformers, minGPT and nanoGPT: GPT-2's shape, the same random weights, greedy, on the CPU.

    python -m benchmarks.generate --peers FOLDER        FOLDER holds checkouts named minGPT and nanoGPT
    python -m benchmarks.generate --tiny                a small model: does the script run?

Contestants take turns, round after round; a table gives the median of each, and the median of the ratios to ours within
a round. Beforehand all float32 contestants must write the same tokens. The bandwidth limit is the time that it takes to
read all weights once, measured here, in the same dtype: a token of a single row cannot be faster. Peers without a cache
take minutes for a long prompt, so there they generate fewer tokens, which is in their favour.
"""

import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Table, parser, ratio, seconds
from benchmarks.peers import PEERS, Sizes, available, build, ours, transformers
from mingpt_lightning.inference import optimize_for_inference

Contestant = Callable[[Tensor, int], Tensor]
CASES = [(1, 32, 100), (1, 512, 100), (16, 32, 100)]  # rows, tokens of the prompt, new tokens


def contestants(reference: Any, folder: Path) -> dict[str, Contestant]:
    """All contestants, with the weights of a transformers model; each generates greedily from (prompt, new tokens)."""
    gpt = ours(reference)
    found: dict[str, Contestant] = {}
    for dtype in ("float32", "bfloat16"):
        fast = optimize_for_inference(copy.deepcopy(gpt), dtype)
        found[f"ours {dtype}"] = partial(fast.generate, temperature=0)
    for name in available(folder, PEERS):
        model = build(name, folder, reference).eval()
        found[f"{name} float32"] = partial(PEERS[name].generate, model)
        if name == "transformers":
            narrow = copy.deepcopy(model).bfloat16()
            found[f"{name} bfloat16"] = partial(PEERS[name].generate, narrow)
    return found


def sweep_seconds(model: torch.nn.Module) -> float:
    """The time to read once all the weights that a token needs."""
    weights = [w for name, w in model.named_parameters() if w.dim() == 2 and "wpe" not in name]
    as_bytes = [w.detach().view(torch.int32) for w in weights]  # summing integers costs less than reading them
    return min(seconds(lambda: [w.sum(dtype=torch.int32) for w in as_bytes]) for _ in range(5))


@torch.no_grad()
def main() -> None:
    arguments = parser(__doc__).parse_args()
    sizes = Sizes(2, 2, 64, 500) if arguments.tiny else Sizes()
    cases = [(rows, prompt // 8, new // 10) for rows, prompt, new in CASES] if arguments.tiny else CASES
    reference = transformers(sizes, initializer_range=0.05)
    runs = contestants(reference, arguments.peers)

    prompt = torch.randint(sizes.vocab_size, (1, 32))
    expected = runs["transformers float32"](prompt, 20)
    for name, run in runs.items():
        if "float32" in name and not torch.equal(run(prompt, 20), expected):
            sys.exit(f"{name} writes other tokens than transformers")
    print(f"{reference.num_parameters():,} parameters, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("all float32 contestants write the same tokens\n")

    limits = {"float32": sweep_seconds(reference), "bfloat16": sweep_seconds(copy.deepcopy(reference).bfloat16())}
    columns = "rows", "prompt", "contestant", "tokens/s", "takes times ours", "of the bandwidth limit"
    table = Table(arguments, "generate", *columns)
    for rows, length, new in cases:
        prompt = torch.randint(sizes.vocab_size, (rows, length))
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(arguments.rounds):
            for name, run in runs.items():
                slow = "GPT" in name
                if slow and (rows > 1 or (length > 100 and times[name])):
                    continue
                count = 10 if slow and length > 100 else new
                times[name].append(seconds(partial(run, prompt, count)) / count / rows)
        best = min((name for name in runs if "ours" in name), key=lambda name: median(times[name]))
        for name, values in times.items():
            if not values:
                continue
            limit = f"{limits[name.split()[1]] / (median(values) * rows):.0%}" if rows == 1 else ""
            table.row(rows, length, name, 1 / median(values), ratio(times[best], values), limit, seconds=values)


if __name__ == "__main__":
    main()

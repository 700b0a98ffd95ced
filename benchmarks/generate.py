"""Generation beside transformers, minGPT and nanoGPT: GPT-2's shape, the same random weights, greedy, on the CPU.

    python -m benchmarks.generate --peers FOLDER        FOLDER holds checkouts named minGPT and nanoGPT
    python -m benchmarks.generate --tiny                a small model, to see that the script runs

Contestants take turns, round after round; a table gives the median of each, and the median of the ratios to ours within
a round. Beforehand all float32 contestants must write the same tokens. The bandwidth limit is the time that it takes
to read all weights once, measured here, in the dtype at hand: one token of a single row can't be faster.
Peers without a cache take minutes for a long prompt, so there they make fewer tokens, which is in their favour.
"""

import copy
import importlib
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.common import Table, parser, ratio, seconds
from mingpt_lightning import GPT
from mingpt_lightning.inference import prepare

Contestant = Callable[[Tensor, int], Tensor]
CASES = [(1, 32, 100), (1, 512, 100), (16, 32, 100)]  # rows, tokens of the prompt, new tokens


def ours(gpt: GPT) -> Contestant:
    return lambda prompt, new: gpt.generate(prompt, new, temperature=0)


def transformers(model: GPT2LMHeadModel) -> Contestant:
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    return lambda prompt, new: model.generate(
        prompt, attention_mask=torch.ones_like(prompt), min_new_tokens=new, max_new_tokens=new, **options
    )


def fill(peer: torch.nn.Module, model: GPT2LMHeadModel) -> torch.nn.Module:
    """Give minGPT's or nanoGPT's GPT the weights of a transformers model."""
    theirs = model.state_dict()
    state = peer.state_dict()
    for name, weight in state.items():
        if name.endswith((".attn.bias", ".masked_bias")):
            continue
        weight.copy_(theirs[name].T if weight.shape != theirs[name].shape or "c_proj.weight" in name else theirs[name])
    return peer.eval()


def peer_models(folder: Path, model: GPT2LMHeadModel) -> dict[str, Contestant]:
    """minGPT and nanoGPT from their checkouts; one that isn't there is said to be missing."""
    sizes = model.config
    found: dict[str, Contestant] = {}
    if (folder / "minGPT/mingpt").is_dir():
        sys.path.insert(0, str(folder / "minGPT"))
        module = importlib.import_module("mingpt.model")
        config = module.GPT.get_default_config()
        config.model_type, config.n_layer, config.n_head, config.n_embd = (
            None,
            sizes.n_layer,
            sizes.n_head,
            sizes.n_embd,
        )
        config.vocab_size, config.block_size = sizes.vocab_size, sizes.n_positions
        mingpt = fill(module.GPT(config), model)
        found["minGPT float32"] = lambda prompt, new: mingpt.generate(prompt, new, do_sample=False)
    else:
        print("minGPT is missing", file=sys.stderr)
    if (folder / "nanoGPT/model.py").is_file():
        sys.path.insert(0, str(folder / "nanoGPT"))
        module = importlib.import_module("model")
        nano = module.GPT(
            module.GPTConfig(
                sizes.n_positions, sizes.vocab_size, sizes.n_layer, sizes.n_head, sizes.n_embd, dropout=0.0
            )
        )
        nanogpt = fill(nano, model)
        found["nanoGPT float32"] = lambda prompt, new: nanogpt.generate(prompt, new, top_k=1)
    else:
        print("nanoGPT is missing", file=sys.stderr)
    return found


def sweep_seconds(gpt: GPT) -> float:
    """The time to read all weights that a token needs, once."""
    weights = [w for name, w in gpt.named_parameters() if w.dim() == 2 and "position" not in name]
    as_bytes = [w.detach().view(torch.int32) for w in weights]  # summing integers costs less than reading them
    return min(seconds(lambda: [w.sum(dtype=torch.int32) for w in as_bytes]) for _ in range(5))


def main() -> None:
    arguments = parser(__doc__).parse_args()

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    sizes = {"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 500} if arguments.tiny else {}
    cases = [(rows, prompt // 8, new // 10) for rows, prompt, new in CASES] if arguments.tiny else CASES
    model = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.05)).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        gpt = GPT.from_pretrained(folder)
    gpt16, model16 = prepare(copy.deepcopy(gpt), "bfloat16"), copy.deepcopy(model).bfloat16()
    contestants = {
        "ours float32": ours(prepare(copy.deepcopy(gpt), "float32")),
        "ours bfloat16": ours(gpt16),
        "transformers float32": transformers(model),
        "transformers bfloat16": transformers(model16),
        **peer_models(arguments.peers, model),
    }

    prompt = torch.randint(gpt.config["vocab_size"], (1, 32))
    expected = contestants["transformers float32"](prompt, 20)
    for name, run in contestants.items():
        if "float32" in name and not torch.equal(run(prompt, 20), expected):
            sys.exit(f"{name} writes other tokens than transformers")
    print(f"{gpt.n_parameters:,} parameters, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("all float32 contestants write the same tokens\n")

    limits = {"float32": sweep_seconds(gpt), "bfloat16": sweep_seconds(copy.deepcopy(gpt).bfloat16())}
    columns = "rows", "prompt", "contestant", "tokens/s", "takes times ours", "of the bandwidth limit"
    table = Table(arguments, "generate", *columns)
    for rows, length, new in cases:
        prompt = torch.randint(gpt.config["vocab_size"], (rows, length))
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(arguments.rounds):
            for name, run in contestants.items():
                slow = "GPT" in name
                if slow and (rows > 1 or (length > 100 and times[name])):
                    continue
                count = 10 if slow and length > 100 else new
                times[name].append(seconds(partial(run, prompt, count)) / count / rows)
        best = min((name for name in contestants if "ours" in name), key=lambda name: median(times[name]))
        for name, values in times.items():
            if not values:
                continue
            limit = f"{limits[name.split()[1]] / (median(values) * rows):.0%}" if rows == 1 else ""
            table.row(rows, length, name, 1 / median(values), ratio(times[best], values), limit, seconds=values)


if __name__ == "__main__":
    main()

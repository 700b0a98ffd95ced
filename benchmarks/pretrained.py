"""Loading GPT-2 and tokenising: peak memory, equality with transformers, and tokens per second beside tiktoken.

    python -m benchmarks.pretrained --vocabulary FOLDER --text FILE

FOLDER holds GPT-2's vocab.json and merges.txt (OpenAI's names encoder.json and vocab.bpe do as well). The weights are
random, of GPT-2's shape. Peak memory is the largest resident set of a process that loads, less that of one that only
imports the same packages; mapped pages of the file count. tiktoken is compared where it is installed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedModel
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from benchmarks.peers import Sizes, transformers, transformers_generate
from mingpt_lightning import GPT, BPETokenizer

PEAK = "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
OURS = "import torch, safetensors.torch, sys; from mingpt_lightning import GPT; from mingpt_lightning import pretrained"
THEIRS = "import torch, safetensors.torch, sys; from transformers import GPT2LMHeadModel, modeling_utils"


def layouts(model: PreTrainedModel, place: Path) -> dict[str, Path]:
    """The same model in every file layout that the library reads."""
    folders = {}
    for name, dtype in (("float32", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        folders[f"safetensors, {name}"] = place / name
        model.to(dtype).save_pretrained(place / name)
        model.float()
    folders["safetensors, sharded"] = place / "sharded"
    model.save_pretrained(place / "sharded", max_shard_size=model.num_parameters() * 4 // 3)
    weights = load_file(place / "float32/model.safetensors")
    plain = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    old = {**weights, "lm_head.weight": weights["transformer.wte.weight"].clone()}
    for i in range(model.config.n_layer):
        old[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 8, 8).tril().bool()
        old[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    for name, content in (("no prefix", plain), ("prefix, head and masks of old files", old)):
        for kind in ("safetensors", "bin"):
            folder = folders[f"{kind}, {name}"] = place / f"{kind} {name}"
            folder.mkdir()
            shutil.copy(place / "float32/config.json", folder)
            if kind == "bin":
                torch.save(content, folder / "pytorch_model.bin")
            else:
                save_file(content, folder / "model.safetensors", {"format": "pt"})
    return folders


def peak(*statements: str) -> int:
    """The largest resident set of a Python process, in bytes."""
    run = subprocess.run([sys.executable, "-c", "; ".join([*statements, PEAK])], capture_output=True, check=True)
    return int(run.stdout.split()[-1]) * 1024


def compare_loading(place: Path) -> None:
    small = transformers(Sizes(4, 4, 128, 1000), bos_token_id=0, eos_token_id=0, initializer_range=0.2).eval()
    prompt = torch.randint(1000, (3, 40))
    print("| layout | largest difference of logits | 30 greedy tokens |\n|---|---|---|")
    for name, folder in layouts(small, place / "small").items():
        theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
        gpt = GPT.from_pretrained(folder)
        with torch.no_grad():
            difference = (gpt(prompt) - theirs(prompt).logits).abs().max().item()
            text = transformers_generate(theirs, prompt, 30)
        same = "equal" if torch.equal(gpt.generate(prompt, 30, temperature=0), text) else "differ"
        print(f"| {name} | {difference:.1e} | {same} |")

    model = transformers(Sizes())
    model.save_pretrained(place / "safetensors")
    (place / "bin").mkdir()
    shutil.copy(place / "safetensors/config.json", place / "bin")
    torch.save(model.state_dict(), place / "bin/pytorch_model.bin")
    size = model.num_parameters() * 4
    del model
    print(f"\nGPT-2, 124 M parameters, {size / 1e6:.0f} MB in float32\n")
    print("| file | loaded by | peak / weights |\n|---|---|---|")
    for kind in ("safetensors", "bin"):
        for who, imports, load in (
            ("this library", OURS, "model = GPT.from_pretrained"),
            ("transformers", THEIRS, "model = GPT2LMHeadModel.from_pretrained"),
        ):
            used = "[weight.sum() for weight in model.parameters()]"  # or transformers would only have mapped them
            extra = peak(imports, f"{load}({str(place / kind)!r})", used) - peak(imports)
            print(f"| {kind} | {who} | {extra / size:.2f} |")


def compare_tokenising(vocabulary: Path, text: str, place: Path) -> None:
    tokenizer = BPETokenizer.from_pretrained(vocabulary)
    backend = tokenizer.hugging_face()
    assert backend is not None
    backend.save(str(place / "tokenizer.json"))
    (place / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    theirs = AutoTokenizer.from_pretrained(place)
    documents = [text[i : i + 65536] for i in range(0, len(text), 65536)]
    runs: dict[str, Callable[[], list[list[int]]]] = {
        "this library": lambda: [list(ids) for ids in tokenizer.encode_batch(documents)],
        "transformers": lambda: theirs(documents).input_ids,
    }
    try:
        import tiktoken

        os.environ["TIKTOKEN_CACHE_DIR"] = str(place)
        for ours, name in (("encoder.json", "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"),
                           ("vocab.bpe", "6d1cbeee0f20b3d9449abfede4726ed8212e3aee")):  # fmt: skip
            shutil.copy(vocabulary / ours, place / name)
        encoding = tiktoken.get_encoding("gpt2")
        runs["tiktoken, 2 threads"] = lambda: encoding.encode_ordinary_batch(documents, num_threads=2)
    except (ImportError, OSError) as error:
        print(f"tiktoken is missing: {error}", file=sys.stderr)
    times: dict[str, list[float]] = {name: [] for name in runs}
    results = {}
    for _ in range(7):
        for name, run in runs.items():
            start = time.perf_counter()
            results[name] = run()
            times[name].append(time.perf_counter() - start)
    tokens = sum(map(len, results["this library"]))
    print(f"\n{len(text):,} characters, {tokens:,} tokens\n")
    print("| tokeniser | tokens/s | times this library | same ids |\n|---|---|---|---|")
    for name, values in times.items():
        ratio = median(mine / other for mine, other in zip(times["this library"], values, strict=True))
        same = "yes" if results[name] == results["this library"] else "no"
        print(f"| {name} | {tokens / median(values):,.0f} | {ratio:.2f} | {same} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=Path)
    parser.add_argument("--text", type=Path)
    arguments = parser.parse_args()
    disable_progress_bar()
    set_verbosity_error()
    with tempfile.TemporaryDirectory() as place:
        compare_loading(Path(place))
        if arguments.vocabulary and arguments.text:
            (Path(place) / "tokenizer").mkdir()
            text = arguments.text.read_text(encoding="utf-8")
            compare_tokenising(arguments.vocabulary, text, Path(place) / "tokenizer")
        else:
            print("tokenising is left out: give --vocabulary and --text", file=sys.stderr)


if __name__ == "__main__":
    main()

"""What many tests share and no test changes: paths, types, texts, small command lines, comparisons."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from mingpt_lightning import GPT

ROOT = Path(__file__).parents[1]

MakeGPT = Callable[..., GPT]
MakeTrainer = Callable[..., pl.Trainer]
Cli = Callable[..., tuple[int, str, str]]

FOX = "The quick brown fox jumps over the lazy dog.\n" * 100
CATS = "the cat sat on the mat.\nthe dog sat on the log.\n" * 9
ODD = "\x00\t\r\n\x0b\x85\xa0\u2028\u3000 'éé\u0301ßǅñ"
ODD += "日本語한국어🤗👨‍👩‍👧‍👦🇫🇷\ufeff\ufffd\u200d\U0010ffffﬁ\uff21①½_.!?<|>"  # what tokenizers lose or join

SMALL = ("model.n_layer=1", "model.n_head=2", "model.n_embd=16")
TINY = (*SMALL, "trainer.max_steps=6", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1")
CHARS = (
    *("datamodule=chargpt", "datamodule.block_size=16"),
    *("trainer.limit_val_batches=2", "trainer.limit_test_batches=2"),
)
PRETRAINED = ("model=gpt2-pretrained", "model.name=gpt")  # a folder that the fixture `pretrained` makes


class Canary:
    """Creates a file when it is unpickled by a reader that executes what it reads."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def choices(group: str) -> list[str]:
    """The names of a group of configs."""
    return sorted(path.stem for path in (ROOT / "configs" / group).glob("*.yaml"))


def same(a: Any, b: Any) -> bool:
    """Whether nested data is equal, tensors to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def log_of(run: str | Path = "run") -> list[dict[str, str]]:
    """The rows of metrics.csv, without what differs between two runs of one command: the times."""
    times = ("seconds", "tokens_per_second", "mfu")
    with Path(run, "metrics.csv").open(newline="") as stream:
        return [{name: value for name, value in row.items() if name not in times} for row in csv.DictReader(stream)]


def text_of(data: Any) -> str:
    """All text that a datamodule holds."""
    return data.tokenizer.decode(data.tokens.tolist())


def documents_of(data: Any) -> list[str]:
    """Its documents."""
    *documents, rest = text_of(data).split("<|endoftext|>")
    assert rest == ""
    return documents


def summary(run: str | Path = "run") -> dict[str, Any]:
    """What summary.json of a run says."""
    return json.loads(Path(run, "summary.json").read_text())


def python(
    code: str, *arguments: str, cwd: Path = ROOT, env: dict[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh process that finds the library and the tests."""
    command = [sys.executable, "-c", code, *arguments]
    env = {**(os.environ if env is None else env), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=check)


CHATML = """{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""  # a chat template, in Jinja

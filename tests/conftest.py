"""What the tests share: small GPTs, a quiet Trainer, the command line, and the one profile of all property tests."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import settings

from mingpt_lightning import GPT
from tests.common import ROOT

settings.register_profile("tests", max_examples=25, deadline=None, derandomize=True, database=None)
settings.load_profile("tests")

torch.set_num_threads(1)  # quickest for models of this size, and two runs of one seed are equal to the last bit


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder for the tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def make_gpt() -> Callable[..., GPT]:
    """Makes a small GPT, the same one for the same arguments.

    `scale` multiplies the initial weights: at 1 all logits are nearly equal, and no test could tell right from wrong.
    """

    def make(vocab_size: int = 11, block_size: int = 8, seed: int = 0, scale: float = 10.0, **sizes: Any) -> GPT:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            gpt = GPT(vocab_size, block_size, **{"n_layer": 2, "n_head": 2, "n_embd": 16} | sizes)
        with torch.no_grad():
            for weight in gpt.parameters():
                if weight.dim() >= 2:
                    weight *= scale
        return gpt

    return make


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., pl.Trainer]:
    """Makes a Trainer that writes and prints nothing."""

    def make(**arguments: Any) -> pl.Trainer:
        quiet = {
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
            "check_val_every_n_epoch": None,
            "limit_val_batches": 0,
        }
        return pl.Trainer(**quiet | arguments)

    return make


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in an empty folder, in this process; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        from mingpt_lightning.cli import main

        monkeypatch.setattr(sys, "argv", [str(ROOT / "main.py"), *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run

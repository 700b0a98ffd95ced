"""What the tests share: small GPTs, a quiet Trainer, the command line, and the same surroundings for every test."""

import functools
import gc
import io
import os
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import omegaconf.base
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hypothesis import settings
from omegaconf import DictConfig, OmegaConf

from mingpt_lightning import GPT, BPETokenizer
from mingpt_lightning.text import language_reference
from tests.common import ROOT, Cli, MakeGPT, MakeTrainer

settings.register_profile("tests", max_examples=25, deadline=None, derandomize=True, database=None)
settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Without pytest-xdist, take its options of pyproject.toml for nothing."""
    if not pluginmanager.hasplugin("xdist"):
        for name in ("--numprocesses", "--maxprocesses", "--dist"):
            parser.addoption(name, help="ignored: there is no pytest-xdist")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder for the tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def imported_for_good() -> None:
    """What is imported stays: without looking through it for garbage, tests are a tenth quicker."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def read_once() -> Iterator[None]:
    """A text of YAML and an interpolation are parsed once: a third of the time of tests, without this.

    What is remembered is by the text and handed out as a copy, so that files may change and configs be changed.
    """
    load, texts = OmegaConf.load, {}

    def load_once(file: Any) -> Any:
        text = file.read() if hasattr(file, "read") else Path(file).read_text(encoding="utf-8")
        if text not in texts:
            texts[text] = pickle.dumps(load(io.StringIO(text)))
        return pickle.loads(texts[text])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", staticmethod(load_once))
        patch.setattr(omegaconf.base, "parse", functools.lru_cache(omegaconf.base.parse))
        yield


@pytest.fixture(autouse=True)
def same_start() -> Iterator[None]:
    """No test sees which others ran before it: seeds, threads and environment variables are the same for each."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # so that two runs of one seed are equal to the last bit
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="session")
def make_gpt() -> MakeGPT:
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


@pytest.fixture(scope="session")
def bpe() -> BPETokenizer:
    """A small vocabulary of byte-level BPE."""
    return BPETokenizer.train(language_reference(), 600)


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
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
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Cli:
    """Runs the command line in an empty folder, in this process; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # nobody is at the keyboard
    get_mode = Hydra.get_mode

    def mode_of(hydra: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        """Hydra composes the whole config once more for this, a third of the time of a short run."""
        if any(item.lstrip("+").startswith("hydra.mode") for item in overrides):
            return get_mode(hydra, config_name, overrides)
        return None

    monkeypatch.setattr(Hydra, "get_mode", mode_of)
    if "curves" not in request.keywords:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # without matplotlib, a run is quicker

    def run(*arguments: str) -> tuple[int, str, str]:
        from mingpt_lightning.cli.main import main

        monkeypatch.setattr(sys, "argv", [str(ROOT / "main.py"), *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Callable[..., DictConfig]]:
    """Composes the config of some overrides as the command line would."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):

        def run(*overrides: str) -> DictConfig:
            cfg = compose("config", list(overrides), return_hydra_config=True)
            OmegaConf.set_readonly(cfg, False)
            OmegaConf.set_struct(cfg, False)
            cfg.hydra.runtime.output_dir = str(tmp_path)
            HydraConfig.instance().set_config(cfg)
            return cfg

        yield run
    HydraConfig.instance().cfg = None

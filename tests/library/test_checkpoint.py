"""Going on with a training as if it had never stopped."""

import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from mingpt_lightning import LanguageModel
from mingpt_lightning.callbacks import CSVLogger
from mingpt_lightning.checkpoint import Checkpoint, read_checkpoint
from mingpt_lightning.muon import Muon
from mingpt_lightning.optim import constant
from mingpt_lightning.signals import STOP, Stopped
from projects.sort.datamodule import SortDataModule
from tests.common import MakeGPT, log_of, same


class StopAt(pl.Callback):
    """The signal of a person, after some batches or in the n-th validation."""

    def __init__(self, batch: int, validating: bool = False):
        self.batch, self.validating = batch, validating

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch and not self.validating:
            signal.raise_signal(signal.SIGTERM)

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx >= self.batch and self.validating:
            signal.raise_signal(signal.SIGTERM)


def train(
    make_gpt: MakeGPT, folder: Path, stop: StopAt | None = None, optimizer: Any = None, **arguments: Any
) -> dict[str, Any]:
    """Train in `folder`, going on from what is there; returns what last.ckpt holds."""
    data = SortDataModule(length=4, num_digits=3, batch_size=8)  # 65 problems: 16 batches an epoch
    gpt = make_gpt(data.vocab_size, data.block_size, dropout=0.2, scale=1.0)
    pl.seed_everything(3, verbose=False)
    system = LanguageModel(gpt, optimizer, constant, data.tokenizer)
    keeper = Checkpoint(str(folder), every_n_train_steps=4)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=CSVLogger(str(folder)),
        callbacks=[keeper, *([stop] if stop else [])],
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_steps": 30, "val_check_interval": 5, "check_val_every_n_epoch": None, "log_every_n_steps": 1,
           "num_sanity_val_steps": 0, "gradient_clip_val": 1.0, "limit_val_batches": 2} | arguments,
    )  # fmt: skip
    last = folder / "last.ckpt"
    try:
        trainer.fit(system, datamodule=data, ckpt_path=last if last.exists() else None, weights_only=True)
    except Stopped:
        assert stop is not None
    finally:
        STOP.restore()
    return read_checkpoint(last)


EVERYTHING = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops")
CASES = {
    "in an epoch": (StopAt(6), {}),
    "at its end": (StopAt(15), {}),
    "at the start of the next": (StopAt(16), {}),
    "where a validation is due": (StopAt(9), {}),
    "in a validation": (StopAt(14, validating=True), {}),
    "in an accumulation window": (StopAt(9), {"accumulate_grad_batches": 4, "max_steps": 12}),
    "in a last, short window": (StopAt(12), {"accumulate_grad_batches": 5, "max_steps": 12}),
    "with epochs": (StopAt(20), {"max_epochs": 3, "max_steps": -1}),
    "with validations by the epoch": (StopAt(15), {"check_val_every_n_epoch": 1, "val_check_interval": 1.0}),
    "with fewer batches an epoch": (StopAt(7), {"limit_train_batches": 7}),
    "under bfloat16": (StopAt(6), {"precision": "bf16-mixed"}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_stopped_run_ends_with_the_same_bits(make_gpt, tmp_path, name):
    stop, arguments = CASES[name]
    whole = train(make_gpt, tmp_path / "whole", **arguments)
    stopped = train(make_gpt, tmp_path / "parts", stop, **arguments)
    assert 0 < stopped["global_step"] < whole["global_step"]
    resumed = train(make_gpt, tmp_path / "parts", **arguments)
    assert all(same(whole[key], resumed[key]) for key in EVERYTHING)
    log = log_of(tmp_path / "whole")
    assert log == log_of(tmp_path / "parts")
    assert [int(row["step"]) for row in log] == list(range(1, whole["global_step"] + 1))


def test_muon_goes_on_with_the_same_bits(make_gpt, tmp_path):
    whole = train(make_gpt, tmp_path / "whole", optimizer=lambda groups: Muon(groups, lr=0.01, adamw_lr=0.01))
    for stop in (StopAt(3), StopAt(19), None):
        parts = train(make_gpt, tmp_path / "parts", stop, optimizer=lambda groups: Muon(groups, lr=0.01, adamw_lr=0.01))
    assert all(same(whole[key], parts[key]) for key in EVERYTHING)


def test_dropout_depends_on_the_seed_and_on_nothing_else(make_gpt, tmp_path, monkeypatch):
    first = train(make_gpt, tmp_path / "a", max_steps=3)
    real = LanguageModel.training_step

    def disturbed(self, batch, batch_idx):
        result = real(self, batch, batch_idx)
        torch.rand(7)  # somebody else takes random numbers between two steps
        return result

    monkeypatch.setattr(LanguageModel, "training_step", disturbed)
    assert same(first["state_dict"], train(make_gpt, tmp_path / "b", max_steps=3)["state_dict"])

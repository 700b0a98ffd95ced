"""Going on with a run as if it had never stopped, or refusing to."""

import csv
import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from mingpt_lightning import LanguageModel
from mingpt_lightning.callbacks import CSVLogger
from mingpt_lightning.checkpoint import Checkpoint, read_checkpoint
from mingpt_lightning.datamodule import BatchLoader, WindowDataset
from mingpt_lightning.errors import UserError
from mingpt_lightning.muon import Muon
from mingpt_lightning.optim import constant
from mingpt_lightning.signals import STOP, Stopped
from projects.sort.datamodule import SortDataModule

TINY = (
    *("model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.dropout=0.1"),
    *("trainer=cpu", "trainer.max_steps=12", "trainer.val_check_interval=4", "trainer.log_every_n_steps=1"),
    *("callbacks.checkpoint.every_n_train_steps=3", "run_dir=run"),
)


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
    make_gpt: Callable[..., Any], folder: Path, stop: StopAt | None = None, optimizer: Any = None, **arguments: Any
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


def same(a: Any, b: Any) -> bool:
    """Whether nested data is equal, tensors to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


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
    logs = [(tmp_path / part / "metrics.csv").read_text() for part in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert len({row["step"] for row in csv.DictReader(logs[0].splitlines())}) == whole["global_step"]


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


def test_processes_share_each_batch_whatever_their_number():
    data = WindowDataset(torch.arange(1000).numpy(), block_size=4, stride=1)
    one = BatchLoader(data, 12, shuffle_seed=5)
    for ranks in (2, 3, 4):
        several = [BatchLoader(data, 12 // ranks, shuffle_seed=5, rank=rank, ranks=ranks) for rank in range(ranks)]
        assert {len(loader) for loader in several} == {len(one)}
        for step in (0, 7, 200):
            parts = torch.cat([loader.batches(step)[0] for loader in several])
            assert torch.equal(parts, one.batches(step)[0])
        for loader in several:
            loader.load_state_dict({"sequences": 12 * 30})
        rest = [next(iter(loader))[0] for loader in several]
        assert torch.equal(torch.cat(rest), one.batches(30)[0])
    with pytest.raises(UserError, match="360 sequences, no whole number of batches of 50"):
        BatchLoader(data, 25, shuffle_seed=5, ranks=2).load_state_dict({"sequences": 360})


def test_every_process_reads_as_many_batches_in_order():
    data = WindowDataset(torch.arange(100).numpy(), block_size=4, stride=4)  # 25 windows
    several = [list(BatchLoader(data, 5, rank=rank, ranks=2)) for rank in range(2)]
    assert [len(batches) for batches in several] == [3, 3]
    read = torch.cat([inputs for batches in several for inputs, _ in batches])
    assert sorted(read[:, 0].tolist()) == [*range(0, 96, 4), 95]
    loader = BatchLoader(data, 5)
    loader.load_state_dict({"sequences": 15})
    assert len(list(loader)) == 2, "the rest of an epoch"
    assert len(list(loader)) == 5, "and then whole ones"


def files(folder: str = "run") -> dict[str, str]:
    """A hash of every file of a run."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_the_command_line_goes_on_where_a_run_was_stopped(cli):
    assert cli(*TINY, "resume=auto")[0] == 0, "nothing is there, so it starts"
    whole, log = read_checkpoint("run/checkpoints/last.ckpt"), Path("run/metrics.csv").read_text()
    summary = json.loads(Path("run/summary.json").read_text())
    code, _, err = cli(*TINY, "resume=must")
    assert code == 0
    assert "resuming    run/checkpoints/last.ckpt, step 12" in err
    assert Path("run/metrics.csv").read_text() == log, "a run that is over is only tested again"
    again = json.loads(Path("run/summary.json").read_text())
    assert again["metrics"]["test/loss"] == summary["metrics"]["test/loss"]
    code, _, err = cli(*TINY, "resume=must", "trainer.max_steps=14")
    assert code == 0
    assert "changed     trainer.max_steps: 12 in the checkpoint, 14 now" in err
    assert read_checkpoint("run/checkpoints/last.ckpt")["global_step"] == 14
    assert whole["global_step"] == 12


CHANGES = [
    (("model.n_layer=2",), "model.n_layer: 1 in the checkpoint, 2 now"),
    (("seed=1",), "seed: 0 in the checkpoint, 1 now"),
    (("optimizer.lr=0.5",), "optimizer.lr: 0.0168 in the checkpoint, 0.5 now"),
    (("scheduler=linear",), "scheduler._target_: mingpt_lightning.optim.cosine"),
    (("datamodule=sort",), "datamodule._target_"),
    (("datamodule.ndigit=1",), "datamodule.ndigit: 2 in the checkpoint, 1 now"),
    (("optimized_metric=val/perplexity",), "optimized_metric: val/loss in the checkpoint"),
]


def test_what_would_make_the_result_wrong_is_refused_and_nothing_is_touched(cli):
    assert cli(*TINY)[0] == 0
    before = files()
    for arguments, message in CHANGES:
        code, _, err = cli(*TINY, *arguments, "resume=auto")
        assert code == 3, arguments
        assert message in err
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1
    for arguments, message in (
        (("resume=never",), "already holds a run (run_dir). Go on with it by resume=auto"),
        (("resume=perhaps",), "Use auto, must or never"),
    ):
        code, _, err = cli(*TINY, *arguments)
        assert (code, message in err) == (2, True)
    assert files() == before


def test_other_data_under_the_same_name_is_refused(cli):
    arguments = (*TINY, "datamodule=chargpt", "datamodule.path=book.txt", "datamodule.block_size=8")
    Path("book.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 50)
    assert cli(*arguments)[0] == 0
    Path("book.txt").write_text("the quick brown fox jumps over the lazy god\n" * 50)
    code, _, err = cli(*arguments, "resume=auto")
    assert code == 3
    assert "other data: its fingerprint has changed" in err
    Path("book.txt").write_text("the quick brown fox jumps over the lazy dog!\n" * 50)
    code, _, err = cli(*arguments, "resume=auto")
    assert (code, "another vocabulary" in err) == (3, True)


def test_resuming_falls_back_to_the_newest_good_file_and_says_so(cli):
    assert cli(*TINY)[0] == 0
    whole = read_checkpoint("run/checkpoints/last.ckpt")
    last, previous = Path("run/checkpoints/last.ckpt"), Path("run/checkpoints/previous.ckpt")
    last.write_bytes(last.read_bytes()[:-100])
    code, _, err = cli("task=test", "checkpoint=run/checkpoints/last.ckpt", "run_dir=t")
    assert code == 3
    assert "last.ckpt is damaged: it has" in err
    assert "previous.ckpt" in err
    code, _, err = cli(*TINY, "resume=auto")
    assert code == 0
    assert "note: run/checkpoints/last.ckpt is damaged: it has" in err
    assert "resuming    run/checkpoints/previous.ckpt, step 9" in err
    assert same(whole["state_dict"], read_checkpoint(last)["state_dict"])
    assert Path("run/checkpoints/last.ckpt.damaged").exists(), "nothing is thrown away"
    for file in (last, previous):
        file.write_bytes(b"")
    before = files()
    code, _, err = cli(*TINY, "resume=auto")
    assert (code, len(err.splitlines())) == (3, 1)
    assert "last.ckpt is damaged: it is empty" in err
    assert files() == before, "starting over is never silent"


def test_a_damaged_best_file_is_replaced_by_the_next_best(cli):
    assert cli(*TINY, "trainer.max_steps=6")[0] == 0
    Path("run/checkpoints/best.ckpt").write_bytes(b"PK")
    code, _, err = cli(*TINY, "resume=must")
    assert code == 0, err
    assert read_checkpoint("run/checkpoints/best.ckpt")["global_step"] in (8, 12)


def test_must_insists_and_weights_alone_are_no_run(cli):
    code, _, err = cli(*TINY, "resume=must")
    assert code == 3
    assert "there is nothing to resume in run: no checkpoints/last.ckpt" in err
    assert not Path("run").exists()
    assert cli(*TINY)[0] == 0
    for name in ("last", "previous"):
        Path(f"run/checkpoints/{name}.ckpt").unlink()
    code, _, err = cli(*TINY, "resume=must")
    assert code == 3
    assert "only weights, run/checkpoints/best.ckpt (resume). Start from them with checkpoint=" in err
    code, _, err = cli(*TINY, "checkpoint=run", "run_dir=new")
    assert code == 0
    assert "weights     run/checkpoints/best.ckpt, step " in err
    code, _, err = cli(*TINY, "checkpoint=run", "run_dir=other", "model.n_layer=2")
    assert (code, "n_layer: 1 in the checkpoint, 2 now" in err) == (3, True)


def test_other_versions_are_named(cli, monkeypatch):
    assert cli(*TINY)[0] == 0
    monkeypatch.setattr(pl, "__version__", "9.9.9")
    code, _, err = cli(*TINY, "resume=auto")
    assert code == 0
    assert "now; the last bits may differ" in err
    assert "changed     pytorch_lightning: " in err

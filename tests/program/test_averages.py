"""Averaged weights: what was validated is what best.ckpt holds, and a resumed run has the same averages."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging

from mingpt_lightning import LanguageModel
from mingpt_lightning.checkpoint import Checkpoint, read_checkpoint
from mingpt_lightning.signals import STOP, Stopped
from projects.adder.datamodule import AdderDataModule
from tests.common import SMALL, Cli, MakeGPT, MakeTrainer, same, summary

CONF = {
    "callbacks/mean.yaml": """
defaults: [default, _self_]
mean:
  _target_: pytorch_lightning.callbacks.WeightAveraging
""",
    "callbacks/swa.yaml": """
defaults: [default, _self_]
swa:
  _target_: pytorch_lightning.callbacks.StochasticWeightAveraging
  swa_lrs: 0.05
  swa_epoch_start: 2
  annealing_epochs: 1
""",
}
STEPS = ("trainer.max_steps=12", "trainer.val_check_interval=4", "callbacks.checkpoint.every_n_train_steps=3")
EPOCHS = (
    *("trainer.max_steps=-1", "trainer.max_epochs=4", "trainer.limit_train_batches=3", "trainer.val_check_interval=3"),
    "callbacks.checkpoint.every_n_train_steps=3",
)
CHOICES = {
    "ema": (*STEPS, "callbacks.ema.decay=0.8"),
    "mean": STEPS,
    "swa": EPOCHS,
}


@pytest.mark.parametrize("name", ["ema", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mean", "swa"))])
def test_the_best_checkpoint_holds_what_was_validated_and_averages_resume(cli: Cli, name: str) -> None:
    for file, text in CONF.items():
        Path("conf", file).parent.mkdir(parents=True, exist_ok=True)
        Path("conf", file).write_text(text)
    own = () if name == "ema" else ("--config-dir", "conf")
    command = (*own, *SMALL, "trainer=cpu", "optimizer.lr=0.02", f"callbacks={name}", *CHOICES[name], "run_dir=run")
    code, _, err = cli(*command)
    assert code == 0, err
    reported = summary()["metrics"]
    for split, task in (("val", "validate"), ("test", "test")):
        assert cli(f"task={task}", "checkpoint=run", "trainer=cpu", f"run_dir={task}")[0] == 0
        assert summary(task)["metrics"][f"{split}/loss"] == pytest.approx(reported[f"{split}/loss"], rel=1e-6)
    whole = read_checkpoint("run/checkpoints/last.ckpt")
    Path("run/checkpoints/last.ckpt").unlink()  # as after a kill
    code, _, err = cli("run_dir=run", "resume=must")
    assert code == 0, err
    assert "resuming    run/checkpoints/previous.ckpt, step 9" in err
    resumed = read_checkpoint("run/checkpoints/last.ckpt")
    for key in ("state_dict", "current_model_state", "averaging_state", "optimizer_states"):
        assert same(whole.get(key), resumed.get(key)), key
    assert summary()["metrics"]["test/loss"] == reported["test/loss"]


def test_averages_leave_other_numbers_of_a_model_alone(cli: Cli) -> None:
    Path("book.txt").write_text("the cat sat on the mat. ça va, ça va bien? " * 60)
    text = ("datamodule=text", "datamodule.path=book.txt", "datamodule.vocab_size=270", "datamodule.block_size=8")
    code, _, err = cli(*SMALL, *text, *STEPS, "trainer=cpu", "callbacks=ema", "callbacks.ema.decay=0.3", "run_dir=run")
    assert code == 0, err
    reported = summary()["metrics"]["test/bits_per_byte"]
    assert cli("task=test", "checkpoint=run", "trainer=cpu", "run_dir=t")[0] == 0
    assert summary("t")["metrics"]["test/bits_per_byte"] == pytest.approx(reported, rel=1e-6)


class StopWhileValidating(pl.Callback):
    """Asks for a stop during the first validation."""

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == 2:
            STOP.received = 15


def test_a_stop_within_a_validation_saves_the_trained_weights(
    make_gpt: MakeGPT, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    def fit(folder: str, *more: pl.Callback, resumed: Path | None = None) -> dict[str, object]:
        callbacks = [EMAWeightAveraging(decay=0.5), Checkpoint(str(tmp_path / folder)), *more]
        trainer = make_trainer(
            max_steps=4, callbacks=callbacks, enable_checkpointing=True, limit_val_batches=2, val_check_interval=2
        )
        data = AdderDataModule(batch_size=4)
        system = LanguageModel(make_gpt(data.vocab_size, data.block_size), tokenizer=data.tokenizer)
        try:
            trainer.fit(system, datamodule=data, ckpt_path=resumed, weights_only=True)
        finally:
            STOP.restore()
        return read_checkpoint(tmp_path / folder / "last.ckpt")

    whole = fit("whole")
    with pytest.raises(Stopped):
        fit("stopped", StopWhileValidating())
    resumed = fit("resumed", resumed=tmp_path / "stopped" / "last.ckpt")
    assert same(whole["state_dict"], resumed["state_dict"])
    assert same(whole["current_model_state"], resumed["current_model_state"])

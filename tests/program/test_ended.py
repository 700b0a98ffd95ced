"""When a run ends, which of its checkpoints is the best, and how it goes on from there."""

import re
from pathlib import Path

import pytest
import torch

from mingpt_lightning.checkpoint import read_checkpoint
from tests.common import SMALL, Cli, summary

RUN = (*SMALL, "trainer=cpu", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1", "run_dir=run")
STUCK = (*RUN, "optimizer.lr=1e-12", "callbacks.early_stopping.patience=2", "+callbacks.early_stopping.min_delta=0.1")


def test_a_metric_of_which_more_is_better_is_maximised(cli: Cli) -> None:
    learned = ("datamodule=sort", "datamodule.length=3", "optimizer.lr=0.03", "trainer.max_steps=40")
    code, _, err = cli(*RUN, *learned, "trainer.val_check_interval=10", "optimized_metric=val/exact_match")
    assert code == 0, err
    state = read_checkpoint("run/checkpoints/last.ckpt")["callbacks"]
    (ours,) = (value for name, value in state.items() if name.startswith("Checkpoint"))
    assert ours["best_metrics"]["val/exact_match"] >= ours["newest_metrics"]["val/exact_match"] > 0
    assert summary()["steps"] > 10, "0 % of right answers is not the end"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("callbacks.checkpoint.mode=max",), "mode=max keeps the worst val/loss, of which less is better"),
        (("callbacks.early_stopping.mode=max",), "(callbacks.early_stopping.mode). Leave it out"),
        (("optimized_metric=val/exact_match", "callbacks.checkpoint.mode=min"), "of which more is better"),
        (("optimized_metric=val/accuracy",), "there is no metric 'val/accuracy'"),
    ],
)
def test_a_mode_against_its_metric_is_refused(cli: Cli, given: tuple[str, ...], message: str) -> None:
    code, _, err = cli(*RUN, *given, "trainer.max_steps=2")
    assert (code, len(err.splitlines())) == (2, 1)
    assert message in err


@pytest.mark.parametrize(
    ("metric", "mode", "threshold"),
    [
        ("val/loss", "min", 0.001),
        ("val/perplexity", "min", 1.001),
        ("val/exact_match", "max", 0.999999),
        ("val/bits_per_byte", "min", None),
    ],
)
def test_direction_and_threshold_follow_from_the_metric(config, metric, mode, threshold):
    callbacks = config(f"optimized_metric={metric}").callbacks
    assert (callbacks.checkpoint.mode, callbacks.early_stopping.mode) == (mode, mode)
    assert callbacks.early_stopping.stopping_threshold == threshold
    one = config(f"callbacks.early_stopping.monitor={metric}").callbacks
    assert (one.checkpoint.mode, one.early_stopping.mode) == ("min", mode)


def test_a_run_says_why_early_stopping_ended_it_and_goes_on_with_more_patience(cli: Cli) -> None:
    code, _, err = cli(*STUCK, "trainer.max_steps=20")
    assert code == 0, err
    why = "early stopping: val/loss did not improve for 2 validations"
    assert f"ended       {why}" in err
    assert (summary()["ended"], summary()["steps"]) == (why, 6)
    assert cli("run_dir=run", "resume=must")[0] == 0
    assert summary()["steps"] == 6, "nothing has changed"
    code, _, err = cli("run_dir=run", "resume=must", "callbacks.early_stopping.patience=4")
    assert "changed     callbacks.early_stopping.patience: 2 in the checkpoint, 4 now" in err
    assert (summary()["ended"], summary()["steps"]) == (why.replace("2", "4"), 10)
    code, _, err = cli("run_dir=run", "resume=must", "callbacks.early_stopping.patience=3", "trainer.max_steps=30")
    assert (code, summary()["steps"]) == (0, 10), "less patience ends it at once"
    code, _, err = cli("run_dir=run", "resume=must", "callbacks.early_stopping=null", "trainer.max_steps=14")
    assert (summary()["ended"], summary()["steps"]) == ("max_steps", 14)


def test_a_threshold_that_was_reached_ends_a_resumed_run_too(cli: Cli) -> None:
    assert cli(*RUN, "callbacks.early_stopping.stopping_threshold=9", "trainer.max_steps=20")[0] == 0
    assert summary()["ended"].startswith("early stopping: val/loss reached 2.")
    assert cli("run_dir=run", "resume=must")[0] == 0
    assert summary()["steps"] == 2
    assert cli("run_dir=run", "resume=must", "callbacks.early_stopping.stopping_threshold=0.1")[0] == 0
    assert summary()["steps"] == 20


def test_a_run_whose_time_was_up_goes_on_with_more_time(cli: Cli) -> None:
    endless = (*RUN, "trainer.max_steps=-1", "trainer.max_epochs=1000000")
    code, _, err = cli(*endless, "trainer.max_time='00:00:00:01'")
    assert code == 0, err
    assert "ended       max_time" in err
    steps = summary()["steps"]
    assert summary()["ended"] == "max_time"
    code, _, err = cli("run_dir=run", "resume=must", "trainer.max_time='00:00:00:02'")
    assert code == 0, err
    assert summary()["steps"] > steps + 2
    code, _, err = cli(
        "run_dir=run", "resume=must", "trainer.max_time=null", f"trainer.max_steps={10**6}", "trainer.max_epochs=1"
    )
    assert code == 0, err


OWN = "{{_target_: pytorch_lightning.callbacks.ModelCheckpoint, monitor: val/loss, {more}}}"


@pytest.mark.parametrize(
    ("more", "written"),
    [
        ("dirpath: more/deep, every_n_train_steps: 2, save_top_k: -1", "more/deep/*step=2*.ckpt"),
        ("dirpath: more, filename: '{step}-{val/loss:.2f}'", "more/step=*-val/loss=*.ckpt"),
        ("save_top_k: 1", "run/checkpoints/*step=*.ckpt"),
    ],
)
def test_lightnings_own_checkpoints_beside_ours(cli: Cli, more: str, written: str) -> None:
    Path("conf/callbacks").mkdir(parents=True)
    Path("conf/callbacks/own.yaml").write_text(f"defaults: [default, _self_]\nown: {OWN.format(more=more)}\n")
    code, _, err = cli("--config-dir", "conf", *RUN, "callbacks=own", "trainer.max_steps=4")
    assert code == 0, err
    (file,) = list(Path().glob(written))[:1]
    assert torch.load(file, weights_only=True)["global_step"] in (2, 4)
    assert cli("task=generate", f"checkpoint={file}", "prompt=1+1")[0] == 0
    assert cli("run_dir=run", "resume=must", "trainer.max_steps=6")[0] == 0


def test_lightnings_own_last_file_would_replace_ours(cli: Cli) -> None:
    Path("conf/callbacks").mkdir(parents=True)
    own = OWN.format(more="save_last: true, dirpath: run/checkpoints")
    Path("conf/callbacks/own.yaml").write_text(f"defaults: [default, _self_]\nown: {own}\n")
    code, _, err = cli("--config-dir", "conf", *RUN, "callbacks=own", "trainer.max_steps=4")
    assert code == 2, err
    assert err.splitlines()[-1].startswith("error: ModelCheckpoint would write last.ckpt into")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["trainer.strategy=fsdp"], "Use trainer=fsdp"),
        (["trainer=fsdp", "trainer.precision=64-true"], "Use one of: 32-true, bf16-mixed, bf16-true, 16-true"),
        (["trainer=fsdp", "callbacks=ema"], "averages of weights .* use trainer=ddp"),
    ],
)
def test_what_cannot_be_divided_over_processes(cli: Cli, options: list[str], line: str) -> None:
    code, _, err = cli(*RUN, *options, "trainer.accelerator=cpu", "run_dir=run")
    assert (code, err.count("\n"), Path("run").exists()) == (2, 1, False)
    assert re.search(line, err)


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_processes_that_hand_nothing_back_are_refused(cli: Cli, strategy: str) -> None:
    code, _, err = cli(*RUN, f"trainer.strategy={strategy}", "trainer.devices=2", "trainer.max_steps=2")
    assert (code, len(err.splitlines())) == (2, 1), err
    assert "Use trainer.strategy=ddp" in err

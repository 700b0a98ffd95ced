"""Loggers get the hyperparameters without secrets, samples as text, and a run of their own for each job of a sweep."""

import json
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from tests.common import SMALL, Cli

SHORT = ("datamodule=sort", *SMALL, "trainer=cpu", "trainer.max_steps=2", "trainer.val_check_interval=1")
SAMPLES = "callbacks.samples.every_n_validations=1"


def test_tensorboard_has_hyperparameters_and_samples_and_no_secret(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TOKEN", "very-secret")
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/secret.yaml").write_text(
        "# @package _global_\ntrainer:\n  default_root_dir: ${oc.env:TOKEN}\n"
    )
    given = ("experiment=secret", "logger=many", SAMPLES, "seed=7", "run_dir=run")
    code, _, err = cli("--config-dir", "conf", *SHORT, *given)
    assert code == 0, err
    saved = yaml.safe_load(Path("run/tensorboard/hparams.yaml").read_text())
    text = json.dumps(saved)
    assert "very-secret" not in text
    assert "${oc.env:TOKEN}" in text
    assert saved["seed"] == 7
    assert saved["model"]["n_embd"] == 16
    events = EventAccumulator("run/tensorboard")
    events.Reload()
    (tag,) = [name for name in events.Tags()["tensors"] if name.startswith("samples")]
    shown = events.Tensors(tag)
    assert [event.step for event in shown] == [1, 2]
    assert b"right" in shown[0].tensor_proto.string_val[0] or b"wrong" in shown[0].tensor_proto.string_val[0]


def test_each_job_of_a_sweep_is_a_run_of_weights_and_biases(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    code, _, err = cli("-m", *SHORT, "logger=wandb", "seed=1,2", SAMPLES, "run_dir=sweep")
    assert code == 0, err
    runs = [sorted(path.name for path in Path(f"sweep/{job}/wandb").glob("offline-run-*")) for job in (0, 1)]
    assert [len(found) for found in runs] == [1, 1]
    assert runs[0] != runs[1]
    import wandb

    assert wandb.run is None

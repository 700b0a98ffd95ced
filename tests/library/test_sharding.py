"""One process, DDP and FSDP train alike, and go on from each other's checkpoints. Two processes on the CPU."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from mingpt_lightning import LanguageModel, UserError
from mingpt_lightning.sharding import check_divisible
from mingpt_lightning.storage import load_checkpoint
from tests.common import MakeGPT, MakeTrainer
from tests.layer_choices import CHOICES
from tests.processes import OPTIMIZERS, in_two_processes, train

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module", name="runs")
def _runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of all runs, and what the two processes found. The workers of pytest share it."""
    place = tmp_path_factory.getbasetemp()
    folder = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "two-processes"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)
        if not (folder / "found.json").exists():
            run_all(folder)
    return folder, json.loads((folder / "found.json").read_text())


def run_all(folder: Path) -> None:
    for optimizer in OPTIMIZERS:
        for accumulated in (1, 2):
            train(folder / f"one-{optimizer}-{accumulated}", "one", optimizer=optimizer, accumulated=accumulated)
        train(folder / f"half-one-{optimizer}", "one", 2, optimizer=optimizer)
    in_two_processes(folder)


def weights(folder: Path) -> Weights:
    return load_checkpoint(folder / "last.ckpt")["state_dict"]


def distance(a: Weights, b: Weights) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_as_one_does(runs: Any, strategy: str, accumulated: int, optimizer: str) -> None:
    one, two = (weights(runs[0] / f"{name}-{optimizer}-{accumulated}") for name in ("one", strategy))
    assert distance(one, two) < 2e-5
    before = weights(runs[0] / f"half-one-{optimizer}")
    assert distance(one, before) > 1e-3


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("move", ["one-to-ddp", "one-to-fsdp", "ddp-to-fsdp", "fsdp-to-ddp"])
def test_checkpoints_move_into_two_processes(runs: Any, move: str, optimizer: str) -> None:
    assert distance(weights(runs[0] / f"{move}-{optimizer}"), weights(runs[0] / f"one-{optimizer}-1")) < 2e-5


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_checkpoints_move_into_one_process(runs: Any, strategy: str, optimizer: str, tmp_path: Path) -> None:
    train(tmp_path, "one", optimizer=optimizer, start=runs[0] / f"half-{strategy}-{optimizer}" / "last.ckpt")
    assert distance(weights(tmp_path), weights(runs[0] / f"one-{optimizer}-1")) < 2e-5


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_divided_training_resumes_to_the_same_bits(runs: Any, optimizer: str) -> None:
    assert distance(weights(runs[0] / f"fsdp-to-fsdp-{optimizer}"), weights(runs[0] / f"fsdp-{optimizer}-1")) == 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_file_has_the_form_that_one_process_gives_it(runs: Any, optimizer: str) -> None:
    def form(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: form(item) for name, item in value.items()}
        return (value.dtype, value.shape) if isinstance(value, torch.Tensor) else type(value)

    one, fsdp = (load_checkpoint(runs[0] / f"{name}-{optimizer}-1" / "last.ckpt") for name in ("one", "fsdp"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops"):
        assert [*map(form, [one[part]])] == [*map(form, [fsdp[part]])]
    assert one["optimizer_states"][0]["state"].keys() == fsdp["optimizer_states"][0]["state"].keys()
    sizes = [(runs[0] / f"{name}-{optimizer}-1" / "last.ckpt").stat().st_size for name in ("one", "fsdp")]
    assert abs(sizes[0] - sizes[1]) < 5000  # the tied matrix is there once
    system = LanguageModel.load_from_checkpoint(runs[0] / f"fsdp-{optimizer}-1" / "best.ckpt")
    assert system.gpt.generate(torch.tensor([[1, 2, 3]]), 2).shape == (1, 5)


@pytest.mark.parametrize(("kind", "within"), [("recompute", 2e-5), ("value", 2e-5), ("adapter", 2e-5), ("bf16", 2e-2)])
def test_fsdp_is_as_ddp(runs: Any, kind: str, within: float) -> None:
    ddp, fsdp = (weights(runs[0] / f"{strategy}-{kind}") for strategy in ("ddp", "fsdp"))
    assert distance(ddp, fsdp) < within
    if kind == "adapter":
        assert all(".lora_" in name for name in fsdp)
    if kind == "recompute":
        assert distance(fsdp, weights(runs[0] / "fsdp-adamw-1")) == 0


def test_a_divided_model_loads_whole_weights(runs: Any) -> None:
    assert runs[1]["best"] == 0


def test_what_a_step_exchanges(runs: Any) -> None:
    """In numbers, of two processes; the norm of the gradient and the like take a few dozen more."""
    ddp, fsdp, muon = (runs[1]["traffic"][name] for name in ("ddp-adamw", "fsdp-adamw", "fsdp-muon"))
    P, few = ddp["parameters"], 100
    assert ddp.get("all_gather", 0) == 0
    assert P <= ddp["all_reduce"] < P + few
    assert fsdp["all_gather"] == P  # half of the weights, twice
    assert P <= fsdp["all_reduce"] < P + few  # gloo's way to reduce and scatter
    assert muon["all_gather"] == P + fsdp["hidden"] // 2


def test_a_divided_training_stops_before_it_diverges(runs: Any) -> None:
    assert "the weights were not updated" in runs[1]["divergence"]


@pytest.mark.parametrize("average", [pl.callbacks.EMAWeightAveraging(), pl.callbacks.StochasticWeightAveraging(1e-3)])
def test_averages_are_not_divided(average: pl.Callback, make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    system = LanguageModel(make_gpt())
    system.trainer = make_trainer(callbacks=[average])
    with pytest.raises(UserError, match="averages of weights that are divided"):
        check_divisible(system)


def test_weights_beside_the_gpt_are_not_divided(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    system = LanguageModel(make_gpt())
    system.trainer, system.own = make_trainer(), torch.nn.Linear(1, 1)
    with pytest.raises(UserError, match=r"trains own\.weight"):
        check_divisible(system)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_can_be_divided(runs: Any, choice: str) -> None:
    assert runs[1]["choices"][choice]

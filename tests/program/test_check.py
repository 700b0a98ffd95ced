"""task=check: says ok of runs that are, finds what is off in those that aren't, and leaves nothing behind."""

import re
import shutil
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mingpt_lightning import GPT
from mingpt_lightning.cli import check
from mingpt_lightning.datamodule import BatchLoader
from projects.adder.datamodule import AdderDataModule

CLI = Callable[..., tuple[int, str, str]]
NAMES = ["disk", "memory", "causality", "first loss", "gradients", "resume", "one batch", "speed"]
SMALL = ("task=check", "datamodule.batch_size=8")


def words(page: str) -> dict[str, str]:
    """What the page says of each check: ok, off or --."""
    return {found[1].strip(): found[2] for found in re.finditer(r"^(.{11})(ok|off|--) ", page, re.MULTILINE)}


def texts(page: str) -> str:
    """The page in one line."""
    return " ".join(page.split())


@pytest.mark.parametrize(
    "config",
    [
        (),
        ("datamodule=sort", "model.dropout=0.1", "trainer.max_steps=-1", "trainer.max_epochs=2"),
        ("datamodule=chargpt", "datamodule.block_size=16", "trainer.accumulate_grad_batches=3", "callbacks=none"),
        ("model=gpt-modern-pico", "optimizer=muon", "scheduler=wsd", "trainer.precision=bf16-mixed"),
    ],
    ids=["adder", "sort", "chargpt", "modern"],
)
def test_our_own_runs_are_ok_and_nothing_is_left(cli: CLI, config: tuple[str, ...]) -> None:
    code, out, page = cli(*SMALL, *config)
    assert words(page) == dict.fromkeys(NAMES, "ok"), page
    assert (code, out) == (0, "")
    assert max(map(len, page.splitlines())) <= 100
    assert "\x1b" not in page
    assert list(Path().rglob("*")) == []
    if not config:
        N, T = 101_120, 6
        page = texts(page)
        assert f"GPT of {N:,} parameters, {(6 * N + 12 * 2 * 64 * T) / 1e6:.1f} MFLOP a token" in page
        assert f"for 700 steps of {8 * T} tokens" in page
        assert f"{11 * 4 * N / 1e6:.1f} MB for checkpoints" in page
        assert 3 * 4 * N < float(page.split("a save is ")[1].split()[0]) * 1e6 < 3.3 * 4 * N


def found(cli: CLI, name: str, *config: str) -> str:
    """The page of a run of which only one thing is off."""
    code, out, page = cli(*SMALL, *config)
    assert words(page) == {**dict.fromkeys(NAMES, "ok"), name: "off"}, page
    assert (code, out) == (2, "")
    assert page.endswith(f"error: off: {name} (task=check). Fix that before a long run.\n")
    assert list(Path().rglob("*")) == []
    return texts(page)


def test_attention_that_looks_ahead_is_found_also_where_branches_start_at_zero(
    cli: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *qkv, is_causal, **more: real(*qkv, **more))
    assert "see the attention" in found(cli, "causality", "model=gpt-modern-pico")


def test_a_parameter_without_a_gradient_is_found(cli: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    real = GPT.__init__

    @wraps(real)
    def init(self: GPT, *args: object, **sizes: object) -> None:
        real(self, *args, **sizes)  # type: ignore[arg-type]
        self.forgotten = nn.Parameter(torch.ones(3))

    monkeypatch.setattr(GPT, "__init__", init)
    assert "28 of 29 parameters have one that is finite and not zero See what the loss makes of forgotten." in found(
        cli, "gradients"
    )


@pytest.mark.parametrize(("lr", "fix"), [("5.0", "Lower"), ("1e-7", "Raise")])
def test_an_absurd_learning_rate_is_found(cli: CLI, monkeypatch: pytest.MonkeyPatch, lr: str, fix: str) -> None:
    monkeypatch.setattr(check, "STEPS", 60)  # otherwise it takes longer to give up
    assert f"{fix} optimizer.lr" in found(cli, "one batch", f"optimizer.lr={lr}")


def test_what_takes_too_long_is_not_decided_and_not_off(cli: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "OVERFIT", 0.0)
    code, _, page = cli(*SMALL)
    assert (code, words(page)) == (0, {**dict.fromkeys(NAMES, "ok"), "one batch": "--"})
    assert "not decided: loss" in page


def test_weights_that_start_too_large_are_found(cli: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPT, "init_weights", lambda self: [nn.init.normal_(weight) for weight in self.parameters()])
    code, _, page = cli(*SMALL)
    assert code == 2
    assert words(page)["first loss"] == "off"


def test_state_that_no_checkpoint_has_is_found(cli: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BatchLoader, "load_state_dict", lambda self, state: None)  # reads the first batches again
    assert "2 + 2 steps differ by" in found(cli, "resume")


def test_a_disk_without_room_is_found(cli: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))  # type: ignore[attr-defined]
    code, _, page = cli(*SMALL)
    assert code == 2
    assert words(page) == {**dict.fromkeys(NAMES, "ok"), "disk": "off", "resume": "--"}
    assert "Free some space, or choose another folder" in page
    assert list(Path().rglob("*")) == []


def test_where_memory_will_not_do_nothing_else_is_tried(cli: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    def huge(self: AdderDataModule) -> list[tuple[torch.Tensor, ...]]:
        return [tuple(tensor.expand(10**10, -1) for tensor in self.dataset("train")[torch.arange(1)])]

    monkeypatch.setattr(AdderDataModule, "train_dataloader", huge)
    code, _, page = cli("task=check")
    assert code == 2
    assert words(page) == {**dict.fromkeys(NAMES, "--"), "disk": "ok", "memory": "off"}
    assert "Halve datamodule.batch_size" in page


def test_weights_of_a_run_must_beat_chance_and_its_folder_is_left_alone(cli: CLI) -> None:
    tiny = ("model.n_layer=1", "model.n_head=2", "model.n_embd=32")
    assert cli("run_dir=run", "trainer.max_steps=40", "trainer.val_check_interval=40", *tiny)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    code, _, page = cli(*SMALL, "checkpoint=run", "run_dir=run", *tiny)
    assert (code, words(page)) == (0, dict.fromkeys(NAMES, "ok"))
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before
    code, _, page = cli(*SMALL, "checkpoint=run", "model.n_layer=2")
    assert code == 3
    assert "n_layer: 1 in the checkpoint, 2 now" in page


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "0.012 s"), (59, "59 s"), (61, "1 min 1 s"), (12000, "3 h 20 min"), (190000, "2 d 4 h")],
)
def test_times_are_said_as_people_do(seconds: float, text: str) -> None:
    assert check.span(seconds) == text

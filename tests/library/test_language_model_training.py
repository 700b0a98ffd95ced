"""LanguageModel in training: accumulation, clipping, the end of the schedule, and that it learns."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from mingpt_lightning import GPT, LanguageModel, UserError
from mingpt_lightning.datamodule import Batch
from mingpt_lightning.loop_state import total_steps
from mingpt_lightning.optim import constant, linear
from projects.sort.datamodule import SortDataModule
from tests.batches import Batches, Losses, T, by_hand, difference, plain_sgd, random_batch, weights
from tests.common import MakeGPT, MakeTrainer


def test_the_training_loss_is_logged(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    system, batch, losses = LanguageModel(make_gpt()), random_batch([3, 8]), Losses()
    total, number = by_hand(system.gpt, [batch])
    trainer = make_trainer(max_steps=1, log_every_n_steps=1, callbacks=[losses])
    trainer.fit(system, datamodule=Batches(batch))
    assert losses.values == pytest.approx([total.item() / number], rel=1e-5)
    assert trainer.callback_metrics["train/loss"].item() == losses.values[0]
    assert system.tokens_seen == 2 * T


@pytest.mark.parametrize("windows", [1, 2])
def test_a_batch_with_nothing_to_learn_has_loss_0(make_gpt: MakeGPT, make_trainer: MakeTrainer, windows: int) -> None:
    system, losses = LanguageModel(make_gpt(), plain_sgd), Losses()
    before = copy.deepcopy(system)
    nothing = random_batch([0, 0])
    trainer = make_trainer(
        max_steps=2, accumulate_grad_batches=windows, callbacks=[losses], limit_val_batches=1.0, detect_anomaly=True
    )
    trainer.fit(system, datamodule=Batches(*[nothing] * 4))
    assert losses.values == [0.0] * 2 * windows
    assert difference(system, before) == 0
    (metrics,) = trainer.validate(system, Batches(nothing), verbose=False)
    assert metrics == {"val/loss": 0.0, "val/perplexity": 1.0}


def test_weight_decay_goes_to_matrices_only(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    system = LanguageModel(make_gpt(), partial(torch.optim.SGD, lr=0.5, weight_decay=0.5), constant)
    before = copy.deepcopy(system.gpt)
    make_trainer(max_steps=1).fit(system, datamodule=Batches(random_batch([0])))  # no gradient, so decay alone
    for (name, weight), old in zip(system.gpt.named_parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(weight, old * (0.75 if old.dim() >= 2 else 1.0), msg=name)


# Accumulation


def train(system: LanguageModel, trainer: pl.Trainer, *batches: Batch) -> LanguageModel:
    """A copy of a system, trained."""
    trained = copy.deepcopy(system)
    trainer.fit(trained, datamodule=Batches(*batches))
    return trained


def together(batches: list[Batch]) -> Batch:
    """One batch of several."""
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


MICRO = [random_batch(counted, seed) for seed, counted in enumerate([[1, 0], [8, 8], [3, 0], [0, 0]])]


def test_accumulated_batches_are_one_large_batch(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    system = LanguageModel(make_gpt(), plain_sgd, partial(constant, warmup=0.0))
    accumulated = train(system, make_trainer(max_steps=1, accumulate_grad_batches=4), *MICRO)
    at_once = train(system, make_trainer(max_steps=1), together(MICRO))
    assert difference(accumulated, at_once) < 1e-6
    assert difference(accumulated, system) > 1e-2

    mean_of_means = copy.deepcopy(system)  # what Lightning alone would do, to see that it is another result
    optimizer = plain_sgd(mean_of_means.parameters())
    for batch in MICRO:
        total, number = by_hand(mean_of_means.gpt, [batch])
        (total / max(number, 1) / 4).backward() if number else None
    optimizer.step()
    assert difference(mean_of_means, at_once) > 1e-2


def test_the_rest_of_an_epoch_is_a_batch_of_its_own(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    system = LanguageModel(make_gpt(), plain_sgd, partial(constant, warmup=0.0))
    accumulated = train(system, make_trainer(max_epochs=1, accumulate_grad_batches=2), *MICRO[:3])
    at_once = train(system, make_trainer(max_steps=2), together(MICRO[:2]), MICRO[2])
    assert difference(accumulated, at_once) < 1e-6


def test_gradients_are_clipped_after_accumulation(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    system = LanguageModel(make_gpt(), plain_sgd, partial(constant, warmup=0.0))
    clipping = {"gradient_clip_val": 0.1, "max_steps": 1}
    accumulated = train(system, make_trainer(accumulate_grad_batches=4, **clipping), *MICRO)
    at_once = train(system, make_trainer(**clipping), together(MICRO))
    assert difference(accumulated, at_once) < 1e-6
    assert (weights(accumulated) - weights(system)).norm().item() == pytest.approx(0.5 * 0.1, rel=1e-3)  # lr * clip


class Gradients(pl.Callback):
    """Notes the norm, and the largest value, of the gradients that the optimizer took."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.largest: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        def note(*_: Any) -> None:
            gradients = torch.cat([weight.grad.flatten() for weight in pl_module.parameters()])
            self.norms.append(gradients.norm().item())
            self.largest.append(gradients.abs().max().item())

        trainer.optimizers[0].register_step_post_hook(note)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
@pytest.mark.parametrize("algorithm", ["norm", "value", None])
def test_clipping_works_with_the_fused_optimizer(
    make_gpt: MakeGPT, make_trainer: MakeTrainer, precision: str, algorithm: str | None
) -> None:
    system, seen = LanguageModel(make_gpt()), Gradients()  # the default optimizer is a fused AdamW
    before = copy.deepcopy(system)
    clipping = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": algorithm} if algorithm else {}
    trainer = make_trainer(max_steps=2, precision=precision, callbacks=[seen], **clipping)
    trainer.fit(system, datamodule=Batches(random_batch([8, 8])))
    assert trainer.global_step == 2
    assert difference(system, before) > 1e-4
    assert weights(system).isfinite().all()
    match algorithm:
        case "norm":
            assert seen.norms == pytest.approx([0.01, 0.01], rel=1e-2)
        case "value":
            assert seen.largest == pytest.approx([0.01, 0.01], rel=1e-2)
            assert min(seen.norms) > 0.02
        case None:
            assert min(seen.largest) > 0.02


# The end of training


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"max_steps": 3}, 3),
        ({"max_epochs": 2}, 10),
        ({"max_epochs": 2, "limit_train_batches": 3}, 6),
        ({"max_epochs": 2, "limit_train_batches": 0.5}, 4),
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, 6),
        ({"max_epochs": 2, "accumulate_grad_batches": 8}, 2),
        ({"max_epochs": 2, "max_steps": 7}, 7),
        ({"max_epochs": 1, "max_steps": 7}, 5),
    ],
)
def test_the_schedule_ends_when_training_ends(
    make_gpt: MakeGPT, make_trainer: MakeTrainer, limits: dict[str, Any], steps: int
) -> None:
    system = LanguageModel(make_gpt(), plain_sgd, partial(linear, warmup=0.0, floor=0.25))
    trainer = make_trainer(**limits)
    trainer.fit(system, datamodule=Batches(*[random_batch([8])] * 5))
    assert total_steps(trainer) == trainer.global_step == steps
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.25 * 0.5)  # floor * lr


def test_the_learning_rate_follows_the_schedule(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    rates: list[float] = []

    class Rates(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    schedule = partial(linear, warmup=0.4)
    trainer = make_trainer(max_steps=5, callbacks=[Rates()])
    trainer.fit(LanguageModel(make_gpt(), plain_sgd, schedule), datamodule=Batches(random_batch([8])))
    assert rates == pytest.approx([0.5 * schedule(step, 5) for step in range(5)])


def test_training_without_an_end_is_refused(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    with pytest.raises(UserError, match=r"max_steps.*max_epochs"):
        make_trainer(max_steps=-1, max_epochs=-1).fit(LanguageModel(make_gpt()), Batches(random_batch([8])))


def test_an_optimizer_that_cannot_be_made_is_refused(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    system = LanguageModel(make_gpt(), partial(torch.optim.SGD, lr=-1.0))
    with pytest.raises(UserError, match=r"Invalid learning rate: -1\.0 \(optimizer\)"):
        make_trainer(max_steps=1).fit(system, datamodule=Batches(random_batch([8])))


# Learning


def test_one_batch_is_learnt_by_heart(make_gpt: MakeGPT, make_trainer: MakeTrainer) -> None:
    losses = Losses()
    system = LanguageModel(make_gpt(n_embd=32, scale=1.0))
    trainer = make_trainer(max_steps=100, callbacks=[losses], gradient_clip_val=1.0)
    trainer.fit(system, datamodule=Batches(random_batch([8, 4])))
    assert losses.values[0] > 2
    assert losses.values[-1] < 0.02


def curve(seed: int, make_trainer: MakeTrainer) -> list[float]:
    """The losses of 20 steps of sort."""
    pl.seed_everything(seed, verbose=False)
    data, losses = SortDataModule(seed=seed, batch_size=16), Losses()
    gpt = GPT(data.vocab_size, data.block_size, n_layer=2, n_head=2, n_embd=16, dropout=0.1)
    make_trainer(max_steps=20, callbacks=[losses]).fit(LanguageModel(gpt, tokenizer=data.tokenizer), datamodule=data)
    return losses.values


def test_a_seed_fixes_the_whole_training(make_trainer: MakeTrainer) -> None:
    first = curve(0, make_trainer)
    assert len(first) == 20
    assert curve(0, make_trainer) == first
    assert curve(1, make_trainer) != first


class Modes(pl.Callback):
    """Which modules of a system train in evaluation mode; and, once, an interruption within a validation."""

    def __init__(self, interrupt: bool = False):
        self.interrupt = interrupt
        self.evaluating: list[str] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.evaluating = [name for name, module in pl_module.named_modules() if not module.training]

    def on_validation_batch_start(self, *_: Any) -> None:
        if self.interrupt:
            raise LookupError


class WithTeacher(LanguageModel):
    """A system with a part that is never trained."""

    def __init__(self, *arguments: Any, **more: Any):
        super().__init__(*arguments, **more)
        self.teacher = torch.nn.Dropout(0.5).eval()


@pytest.mark.filterwarnings("ignore:Found 1 module")  # the teacher
def test_training_is_in_training_mode_whatever_came_before(
    make_gpt: MakeGPT, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    data = Batches(random_batch([3, 8]))
    system, modes = WithTeacher(make_gpt(dropout=0.5)), Modes(interrupt=True)
    trainer = make_trainer(max_steps=2, val_check_interval=1, limit_val_batches=1, callbacks=[modes])
    with pytest.raises(LookupError):
        trainer.fit(system, datamodule=data)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    loaded = WithTeacher.load_from_checkpoint(tmp_path / "own.ckpt")
    assert not loaded.training
    for again in (system, loaded):
        modes = Modes()
        make_trainer(max_steps=2, val_check_interval=1, limit_val_batches=1, callbacks=[modes]).fit(
            again, datamodule=data
        )
        assert modes.evaluating == ["teacher"]

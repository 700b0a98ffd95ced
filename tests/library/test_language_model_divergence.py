"""A loss or a gradient that isn't finite ends a training before it ruins the weights."""

import pytest
import torch

from mingpt_lightning import LanguageModel
from mingpt_lightning.errors import DivergedError
from mingpt_lightning.optim import constant
from projects.adder.datamodule import AdderDataModule


def poison(system: LanguageModel, batch: int, factor: float, gradient: bool) -> None:
    real, calls = system.loss_sum, []

    def loss_sum(inputs, targets):
        total, tokens = real(inputs, targets)
        calls.append(1)
        if len(calls) - 1 == batch:
            if gradient:
                total.register_hook(lambda grad: grad * factor)
            else:
                total = total * factor
        return total, tokens

    system.loss_sum = loss_sum  # type: ignore[method-assign]


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("windows", [1, 3])
@pytest.mark.parametrize(("factor", "gradient"), [(float("nan"), False), (float("inf"), False), (float("nan"), True)])
def test_training_stops_before_the_update(make_gpt, make_trainer, clip, windows, factor, gradient):
    data = AdderDataModule(ndigit=1, batch_size=8)

    def train(steps: int, poisoned: bool) -> LanguageModel:
        system = LanguageModel(make_gpt(data.vocab_size, data.block_size), None, constant, data.tokenizer)
        trainer = make_trainer(max_steps=steps, accumulate_grad_batches=windows, gradient_clip_val=clip)
        if not poisoned:
            trainer.fit(system, datamodule=data)
            return system
        poison(system, batch=2 * windows, factor=factor, gradient=gradient)
        what = "gradient's norm" if gradient else "loss"
        with pytest.raises(DivergedError, match=rf"the {what} is (nan|inf) at step 3, with learning rate 0\.0168; the"):
            trainer.fit(system, datamodule=data)
        return system

    before, after = train(2, False).gpt.state_dict(), train(9, True).gpt.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_validation_that_is_not_finite_ends_it_too(make_gpt, make_trainer):
    data = AdderDataModule(ndigit=1, batch_size=8)
    system = LanguageModel(make_gpt(data.vocab_size, data.block_size), None, constant, data.tokenizer)
    real = system.evaluate
    system.evaluate = lambda batch: real(batch) * float("nan")  # type: ignore[method-assign]
    trainer = make_trainer(max_steps=4, limit_val_batches=1, val_check_interval=2, num_sanity_val_steps=0)
    with pytest.raises(DivergedError, match="val/loss is nan after step 2"):
        trainer.fit(system, datamodule=data)

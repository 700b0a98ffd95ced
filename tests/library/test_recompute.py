"""Activations computed again: the same numbers with less memory."""

import copy
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from mingpt_lightning import GPT, LanguageModel
from mingpt_lightning.recompute import recompute_blocks
from mingpt_lightning.structure import check_exportable
from projects.adder.datamodule import AdderDataModule
from tests.common import MakeTrainer

TOKENS = torch.arange(8).repeat(4, 1)


def trained(gpt: GPT) -> tuple[list[torch.Tensor], int]:
    """The gradients of a GPT, and the bytes that its forward pass keeps for them."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(1)  # of dropout
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = gpt(TOKENS).square().mean()
    loss.backward()
    return [weight.grad for weight in gpt.parameters() if weight.grad is not None], sum(kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_numbers_stay_and_less_is_kept(dropout: float) -> None:
    gpt = GPT(vocab_size=11, block_size=8, n_layer=4, n_head=2, n_embd=16, dropout=dropout)
    twin = copy.deepcopy(gpt)
    recompute_blocks(twin)
    recompute_blocks(twin)  # twice is once
    again = copy.deepcopy(twin)
    (plain, before), (ours, after) = trained(gpt), trained(twin)
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain, trained(again)[0], strict=True))
    assert after < before / 2
    assert gpt.state_dict().keys() == twin.state_dict().keys()
    prompt = TOKENS[:1, :3]
    assert torch.equal(gpt.eval().generate(prompt, 4, temperature=0), twin.eval().generate(prompt, 4, temperature=0))


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("recompute", [False, True])
def test_a_system_does_it_while_it_trains(recompute: bool, make_trainer: MakeTrainer) -> None:
    class Seen(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            seen.append("forward" in vars(pl_module.gpt.blocks[0]))  # type: ignore[union-attr,arg-type]

    seen: list[bool] = []
    data = AdderDataModule(batch_size=2)
    gpt = GPT(data.vocab_size, data.block_size, n_layer=1, n_head=2, n_embd=16)
    make_trainer(max_steps=2, callbacks=[Seen()]).fit(LanguageModel(gpt, recompute=recompute), datamodule=data)
    assert seen == [recompute] * 2
    check_exportable(gpt)  # as if nothing had been done to it

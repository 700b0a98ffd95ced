"""Muon: orthogonal steps for hidden matrices, AdamW's for the rest, in one optimizer."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mingpt_lightning import GPT, UserError
from mingpt_lightning.muon import Muon, orthogonalize
from mingpt_lightning.optim import parameter_groups
from tests.common import MakeGPT


def gradients(gpt: GPT, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in gpt.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)


def steps(gpt: GPT, optimizer: torch.optim.Optimizer, seeds: range) -> dict[str, torch.Tensor]:
    for seed in seeds:
        gradients(gpt, seed)
        optimizer.step()
    return {name: weight.detach() for name, weight in gpt.named_parameters()}


sizes = st.integers(1, 40)


@given(rows=sizes, columns=sizes, seed=st.integers(0, 99), scale=st.sampled_from([1e-3, 1, 1e3]))
def test_singular_values_come_near_1(rows: int, columns: int, seed: int, scale: float) -> None:
    matrices = scale * torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(seed))
    result = orthogonalize(matrices)
    for matrix, orthogonal in zip(matrices, result, strict=True):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        values = (u.T @ orthogonal @ vh.T).diagonal()  # in the same directions
        assert ((values > 0.5) & (values < 1.3))[s > 0.1 * s[0]].all()


def test_a_batch_is_what_each_matrix_is_alone() -> None:
    matrices = torch.randn(5, 12, 7)
    together = orthogonalize(matrices)
    assert torch.allclose(together, torch.cat([orthogonalize(matrix[None]) for matrix in matrices]), atol=1e-5)
    assert torch.allclose(orthogonalize(matrices.mT), together.mT, atol=1e-5)


def test_hidden_matrices_move_as_in_torch(make_gpt: MakeGPT) -> None:
    gpt = make_gpt()
    reference = copy.deepcopy(gpt)
    hidden = [weight for weight in reference.blocks.parameters() if weight.dim() == 2]
    other = torch.optim.Muon(hidden, lr=0.02, momentum=0.95, weight_decay=0.1, nesterov=True)
    ours = steps(gpt, Muon(parameter_groups(gpt), lr=0.02, weight_decay=0.1), range(3))
    theirs = steps(reference, other, range(3))
    for name, weight in ours.items():
        if name.startswith("blocks.") and weight.dim() == 2:
            # torch's iteration runs in bfloat16
            torch.testing.assert_close(weight, theirs[name], rtol=0, atol=4e-3)


def test_the_rest_moves_as_with_adamw(make_gpt: MakeGPT) -> None:
    gpt = make_gpt()
    reference = copy.deepcopy(gpt)
    adamw = torch.optim.AdamW(parameter_groups(reference), lr=3e-3, betas=(0.8, 0.9), weight_decay=0.1, fused=True)
    muon = Muon(parameter_groups(gpt), adamw_lr=3e-3, betas=(0.8, 0.9), weight_decay=0.1)
    ours, theirs = steps(gpt, muon, range(4)), steps(reference, adamw, range(4))
    for name, weight in ours.items():
        hidden = name.startswith("blocks.") and weight.dim() == 2
        assert torch.equal(weight, theirs[name]) != hidden, name


def test_a_saved_state_goes_on_exactly(make_gpt: MakeGPT) -> None:
    gpt = make_gpt()
    optimizer = Muon(parameter_groups(gpt))
    steps(gpt, optimizer, range(3))
    twin = copy.deepcopy(gpt)
    resumed = Muon(parameter_groups(twin))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    ours, theirs = steps(gpt, optimizer, range(3, 6)), steps(twin, resumed, range(3, 6))
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def test_a_schedule_scales_both_learning_rates(make_gpt: MakeGPT) -> None:
    optimizer = Muon(parameter_groups(make_gpt()), lr=0.02, adamw_lr=0.01)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5)
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {
        "hidden": 0.01,
        "embeddings": 0.005,
        "vectors": 0.005,
    }


def test_weights_without_a_gradient_stay(make_gpt: MakeGPT) -> None:
    gpt = make_gpt()
    before = copy.deepcopy(gpt.state_dict())
    Muon(parameter_groups(gpt), weight_decay=0.5).step()
    assert all(torch.equal(weight, before[name]) for name, weight in gpt.state_dict().items())


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"adamw_lr": -1.0}])
def test_a_rate_must_be_positive(make_gpt: MakeGPT, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be above 0"):
        Muon(parameter_groups(make_gpt()), **options)


def test_a_vector_is_not_orthogonalized() -> None:
    with pytest.raises(UserError, match="takes matrices only"):
        Muon([{"name": "hidden", "params": [torch.nn.Parameter(torch.zeros(3))]}])


def test_it_learns_sums_through_lightning(make_trainer: Callable[..., Any]) -> None:
    from mingpt_lightning import LanguageModel
    from mingpt_lightning.optim import wsd
    from projects.adder.datamodule import AdderDataModule

    torch.manual_seed(0)
    data = AdderDataModule(ndigit=1, batch_size=64)
    gpt = GPT(data.vocab_size, data.block_size, n_layer=2, n_head=4, n_embd=32)
    system = LanguageModel(gpt, partial(Muon, adamw_lr=0.01), partial(wsd, decay=0.6), data.tokenizer)
    make_trainer(max_steps=60, gradient_clip_val=1.0).fit(system, datamodule=data)
    assert system.train_loss is not None
    assert system.train_loss < 1.0  # from 2.3

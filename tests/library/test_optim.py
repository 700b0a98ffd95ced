"""Decay groups and learning-rate schedules."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mingpt_lightning.optim import Schedule, constant, cosine, linear, lr_for_width, parameter_groups, wsd
from tests.common import MakeGPT


def test_matrices_decay_and_nothing_else(make_gpt: MakeGPT) -> None:
    gpt = make_gpt()
    with torch.no_grad():
        for weight in gpt.parameters():
            weight.fill_(1.0)
    optimizer = torch.optim.SGD(parameter_groups(gpt), lr=1.0, weight_decay=0.25)
    for weight in gpt.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for name, weight in gpt.named_parameters():
        is_matrix = "embedding" in name or (name.endswith("weight") and "norm" not in name)
        assert (weight == (0.75 if is_matrix else 1.0)).all(), name  # a tied matrix that came twice would be at 0.5625


def test_every_weight_is_in_one_group_once(make_gpt: MakeGPT) -> None:
    gpt = make_gpt()
    grouped = [weight for group in parameter_groups(gpt) for weight in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, gpt.parameters()))
    assert sum(weight.numel() for weight in grouped) == gpt.n_parameters
    assert sum(weight is gpt.head.weight for weight in grouped) == 1


def test_groups_say_what_a_weight_is(make_gpt: MakeGPT) -> None:
    gpt = make_gpt(tie_embeddings=False)
    hidden, embeddings, vectors = (set(map(id, group["params"])) for group in parameter_groups(gpt))
    assert embeddings == {id(gpt.token_embedding.weight), id(gpt.position_embedding.weight), id(gpt.head.weight)}
    assert hidden == {id(weight) for weight in gpt.blocks.parameters() if weight.dim() == 2}
    assert vectors == {id(weight) for weight in gpt.parameters() if weight.dim() == 1}


def test_a_frozen_weight_is_left_out(make_gpt: MakeGPT) -> None:
    gpt = make_gpt()
    gpt.position_embedding.requires_grad_(False)
    grouped = [weight for group in parameter_groups(gpt) for weight in group["params"]]
    assert len(grouped) == len(list(gpt.parameters())) - 1
    assert all(weight is not gpt.position_embedding.weight for weight in grouped)


def test_no_decay_means_none(make_gpt: MakeGPT) -> None:
    groups = torch.optim.AdamW(parameter_groups(make_gpt()), weight_decay=0.0).param_groups
    assert [group["weight_decay"] for group in groups] == [0.0, 0.0, 0.0]


totals = st.integers(1, 3000)
shares = st.floats(0, 1, exclude_max=True)


@given(total=totals, warmup=shares, floor=st.floats(0, 1))
@pytest.mark.parametrize("schedule", [cosine, linear])
def test_a_schedule_rises_in_warm_up_then_falls_to_its_floor(
    schedule: Schedule, total: int, warmup: float, floor: float
) -> None:
    factors = [schedule(step, total, warmup=warmup, floor=floor) for step in range(total + 5)]
    steps = int(warmup * total)
    rise, fall = factors[: steps + 1], factors[steps:]
    assert factors[0] > 0  # the first step counts
    assert all(0 <= factor <= 1 for factor in factors)
    assert all(before < after for before, after in pairwise(rise))
    assert fall[0] == pytest.approx(1)
    assert all(before >= after for before, after in pairwise(fall))
    assert factors[total:] == pytest.approx([floor] * 5)


@given(total=totals, warmup=st.floats(0, 0.4), decay=st.floats(0.01, 0.6), floor=st.floats(0, 1))
def test_wsd_rises_stays_and_falls(total: int, warmup: float, decay: float, floor: float) -> None:
    factors = [wsd(step, total, warmup=warmup, decay=decay, floor=floor) for step in range(total + 5)]
    steps, start = int(warmup * total), total - decay * total
    assert factors[0] > 0
    assert all(0 <= factor <= 1 + 1e-9 for factor in factors)
    assert all(before < after for before, after in pairwise(factors[: steps + 1]))
    assert all(factor == 1 for step, factor in enumerate(factors) if steps <= step <= start - 1e-6)
    assert all(before >= after for before, after in pairwise(factors[steps:]))
    assert factors[total:] == pytest.approx([floor] * 5)


@given(total=totals, warmup=shares)
def test_constant_rises_in_warm_up_then_stays(total: int, warmup: float) -> None:
    factors = [constant(step, total, warmup=warmup) for step in range(total + 5)]
    steps = int(warmup * total)
    assert factors[0] > 0
    assert all(before < after for before, after in pairwise(factors[: steps + 1]))
    assert set(factors[steps:]) == {1.0}


def test_the_middle_of_the_way_down() -> None:
    assert cosine(60, 110, warmup=10 / 110, floor=0.2) == pytest.approx(0.6)
    assert linear(60, 110, warmup=10 / 110, floor=0.2) == pytest.approx(0.6)
    assert cosine(35, 110, warmup=10 / 110) == pytest.approx(0.853553, abs=1e-6)  # (1 + cos(pi / 4)) / 2
    assert linear(35, 110, warmup=10 / 110) == pytest.approx(0.75)


def test_the_learning_rate_falls_with_the_width() -> None:
    assert lr_for_width(3.5e-4, 768) == pytest.approx(3.5e-4)
    assert lr_for_width(3.5e-4, 64) == pytest.approx(4.2e-3)

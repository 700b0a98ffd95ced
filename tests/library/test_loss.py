"""Cross-entropy in pieces is cross-entropy."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mingpt_lightning import GPT, loss
from mingpt_lightning.loss import cross_entropy_sum
from tests.common import MakeGPT


def loss_and_gradients(gpt: GPT, hidden: Tensor, targets: Tensor, dtype: torch.dtype) -> list[Tensor]:
    hidden = hidden.clone().requires_grad_()
    gpt.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        total = cross_entropy_sum(gpt, hidden, targets)
    (3 * total).backward()
    assert hidden.grad is not None
    assert gpt.head.weight.grad is not None
    return [total.detach(), hidden.grad, gpt.head.weight.grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"tie_embeddings": False}, {"logit_softcap": 2.0}], ids=str)
@pytest.mark.parametrize("rows", [1, 5, 7, 24])
def test_pieces_give_the_same_loss_and_gradients(
    make_gpt: MakeGPT, monkeypatch: pytest.MonkeyPatch, rows: int, options: dict[str, object], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    gpt = make_gpt(**options)
    torch.nn.init.normal_(gpt.head.weight)
    V = gpt.config["vocab_size"]
    hidden, targets = torch.randn(3, 8, 16), torch.randint(V, (3, 8))
    targets[0, 3:] = targets[2] = -100
    expected = loss_and_gradients(gpt, hidden, targets, dtype)
    seen, real = [], F.cross_entropy

    def noted(logits: Tensor, *arguments: object, **more: object) -> Tensor:
        seen.append(len(logits))
        return real(logits, *arguments, **more)

    monkeypatch.setitem(loss.LOGITS, "cpu", rows * V)
    monkeypatch.setattr(F, "cross_entropy", noted)
    found = loss_and_gradients(gpt, hidden, targets, dtype)
    assert sum(seen) == 24
    assert max(seen) <= rows
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def test_nothing_to_learn_is_nothing(make_gpt: MakeGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss.LOGITS, "cpu", 20)
    gpt, hidden = make_gpt(), torch.randn(2, 8, 16)
    total, *gradients = loss_and_gradients(gpt, hidden, torch.full((2, 8), -100), torch.float32)
    assert total == 0
    assert not any(gradient.any() for gradient in gradients)

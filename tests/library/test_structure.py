"""Models with layers of one's own: what is fused, packed, cached or exported is exactly a known layer."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mingpt_lightning import GPT, LanguageModel, UserError, loss
from mingpt_lightning.device import NARROW
from mingpt_lightning.errors import CheckpointError
from mingpt_lightning.gpt import MLP
from mingpt_lightning.inference import optimize_for_inference
from mingpt_lightning.layers import Softcap
from mingpt_lightning.loss import cross_entropy_sum
from mingpt_lightning.structure import own_layers
from tests.common import MakeGPT, MakeTrainer

TOKENS = torch.arange(24).reshape(2, 12) % 11


class Gated(nn.Module):
    """A gated MLP around one of the library's."""

    def __init__(self, mlp: MLP):
        super().__init__()
        self.fc, self.proj, self.activation = mlp.fc, mlp.proj, nn.SiLU()
        self.gate = nn.Linear(mlp.fc.in_features, mlp.fc.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.activation(self.gate(x)) * self.fc(x))


class Squared(MLP):
    """Reads the weights of its layers instead of calling them."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.fc.weight).square(), self.proj.weight)


class Low(nn.Linear):
    """A linear layer with something added."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean(dim=-1, keepdim=True)


class Averaging(nn.Module):
    """Mixes the tokens so far without keys and values, so that it knows nothing of a cache."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x.cumsum(dim=1) / torch.arange(1, x.shape[1] + 1)[:, None]


class Twice(nn.Module):
    """Two attentions in one layer, which would overwrite each other's keys."""

    def __init__(self, attn: nn.Module):
        super().__init__()
        self.one, self.two = attn, copy.deepcopy(attn)
        nn.init.normal_(self.two.qkv.weight)

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        return self.one(x, *more) + self.two(x, *more)


class NegativeGPT(GPT):
    def logits(self, hidden: Tensor) -> Tensor:
        return -super().logits(hidden)


class UncachedGPT(GPT):
    def hidden(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        return super().hidden(tokens).flip(-1)


def replace(name: str, make: Callable[[Any], nn.Module]) -> Callable[[GPT], None]:
    """A change of a GPT: each block's layer of this name, `a.b`, is replaced."""
    *path, last = name.split(".")

    def change(gpt: GPT) -> None:
        for block in gpt.blocks:
            owner = block.get_submodule(".".join(path))
            setattr(owner, last, make(getattr(owner, last)))

    return change


def derived(like: nn.Linear | MLP, cls: type) -> nn.Module:
    """The same layer, of a class derived from its own."""
    like = copy.deepcopy(like)
    like.__class__ = cls
    return like


def patched(layer: nn.Module) -> nn.Module:
    layer.forward = lambda x: 2 * x  # type: ignore[method-assign]
    return layer


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    return layer


def become(cls: type) -> Callable[[GPT], None]:
    return lambda gpt: setattr(gpt, "__class__", cls)


def head(make: Callable[[Any], nn.Module]) -> Callable[[GPT], None]:
    return lambda gpt: setattr(gpt, "head", make(gpt.head))


CHANGES: dict[str, Callable[[GPT], None]] = {
    "gated MLP": replace("mlp", Gated),
    "derived MLP": replace("mlp", lambda mlp: derived(mlp, Squared)),
    "other activation": replace("mlp.activation", lambda _: nn.SiLU()),
    "other kind of GELU": replace("mlp.activation", lambda _: nn.GELU()),
    "no activation": replace("mlp.activation", lambda _: nn.Identity()),
    "patched activation": replace("mlp.activation", patched),
    "hooked activation": replace("mlp.activation", hooked),
    "hooked matrix": replace("mlp.fc", hooked),
    "derived matrix": replace("mlp.fc", lambda linear: derived(linear, Low)),
    "derived projection": replace("attn.proj", lambda linear: derived(linear, Low)),
    "attention without a cache": replace("attn", lambda _: Averaging()),
    "two attentions": replace("attn", Twice),
    "torch's sequence": replace("mlp", lambda mlp: nn.Sequential(mlp.fc, nn.Tanh(), mlp.proj)),
    "derived head": head(lambda linear: derived(linear, Low)),
    "hooked head": head(hooked),
    "head of two layers": head(lambda linear: nn.Sequential(nn.Tanh(), linear)),
    "soft-cap": lambda gpt: setattr(gpt, "softcap", Softcap(1.0)),
    "logits of its own": become(NegativeGPT),
    "hidden of its own": become(UncachedGPT),
}


@pytest.fixture(params=CHANGES)
def own(request: pytest.FixtureRequest, make_gpt: MakeGPT) -> GPT:
    gpt = make_gpt(n_embd=NARROW, n_head=4, n_layer=2, vocab_size=11, block_size=12, scale=2.0)
    CHANGES[request.param](gpt)
    return gpt.eval()


def test_an_own_layer_computes_the_same_when_optimized_and_with_a_cache(own: GPT) -> None:
    quick = optimize_for_inference(copy.deepcopy(own), "float32")
    torch.testing.assert_close(quick(TOKENS), own(TOKENS), atol=1e-4, rtol=1e-4)
    expected = own.generate([*TOKENS, TOKENS[0, :3]], 14, temperature=0, use_cache=False)
    for gpt in (own, quick):
        assert all(map(torch.equal, gpt.generate([*TOKENS, TOKENS[0, :3]], 14, temperature=0), expected))


def test_an_own_head_learns_its_own_loss_in_pieces(own: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients() -> list[Tensor]:
        own.zero_grad()
        total = cross_entropy_sum(own, own.hidden(TOKENS), TOKENS)
        total.backward()
        return [total.detach(), *(w.grad for w in own.parameters() if w.grad is not None)]

    expected = gradients()
    torch.testing.assert_close(expected[0], F.cross_entropy(own(TOKENS).mT, TOKENS, reduction="sum"))
    monkeypatch.setitem(loss.LOGITS, "cpu", 5 * 11)
    for one, other in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_an_own_layer_is_not_exported(own: GPT, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="transformers has no "):
        own.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_own_layer_is_not_lost_when_a_checkpoint_is_read(
    own: GPT, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    if own_layers(own):  # what is hooked or patched can't be told from a file
        trainer = make_trainer(max_steps=1)
        trainer.strategy.connect(LanguageModel(own))
        trainer.save_checkpoint(tmp_path / "own.ckpt")
        with pytest.raises(CheckpointError):
            LanguageModel.load_from_checkpoint(tmp_path / "own.ckpt")


def test_stock_models_have_no_own_layers(make_gpt: MakeGPT) -> None:
    for options in (
        {"dropout": 0.1},
        {"dropout": [0.0, 0.1, 0.2], "activation": "relu_squared", "n_inner": 8},
        {"norm": "rmsnorm", "position": "rotary", "qk_norm": True, "tie_embeddings": False, "logit_softcap": 3.0},
        {"norm": "rmsnorm", "position": "rotary", "n_kv_head": 1, "mlp": "gated", "bias": "qkv", "qk_norm": "separate"},
        {"norm_order": "post", "activation": "quick_gelu", "head_dim": 6},
    ):
        gpt = make_gpt(**options)
        assert own_layers(gpt) == []
        gpt.crop_block_size(4)
        gpt.grow_vocabulary(20)
        assert own_layers(gpt) == []


def test_an_optimized_model_is_not_exported(make_gpt: MakeGPT, tmp_path: Path) -> None:
    gpt = optimize_for_inference(make_gpt(n_embd=NARROW, n_head=4), "float32")
    with pytest.raises(UserError, match="PackedLinear"):
        gpt.save_pretrained(tmp_path / "out")


def test_a_forward_that_nothing_would_call_is_refused(make_gpt: MakeGPT) -> None:
    class Doubled(GPT):
        def forward(self, tokens: Tensor) -> Tensor:
            return 2 * super().forward(tokens)

    gpt = Doubled(11, 8, n_layer=1, n_head=2, n_embd=16)
    for use in (lambda: LanguageModel(gpt), lambda: gpt.generate(TOKENS[:, :3], 2)):
        with pytest.raises(UserError, match="Override hidden or logits instead of forward"):
            use()

"""A GPT that is made quick at generating computes the same."""

import copy
from typing import Any

import pytest
import torch

from mingpt_lightning import UserError, inference
from mingpt_lightning.device import NARROW, fast_dtype
from mingpt_lightning.inference import PackedLinear, optimize_for_inference
from tests.common import MakeGPT

WIDE = {"n_embd": NARROW, "n_head": 4, "n_layer": 2, "vocab_size": 50, "block_size": 40, "scale": 2.0}
TOKENS = torch.arange(60).reshape(4, 15) % 50


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu", "relu"])
def test_logits_and_tokens_stay_the_same_in_float32(make_gpt: MakeGPT, activation: str) -> None:
    gpt = make_gpt(**WIDE, activation=activation).eval()
    quick = optimize_for_inference(copy.deepcopy(gpt), "float32")
    torch.testing.assert_close(quick(TOKENS), gpt(TOKENS), atol=1e-4, rtol=1e-4)
    for options in ({"temperature": 0}, {"seed": 1}, {"seed": 2, "top_p": 0.9}):
        expected = gpt.generate([*TOKENS, TOKENS[0, :3]], 60, **options)
        assert all(map(torch.equal, quick.generate([*TOKENS, TOKENS[0, :3]], 60, **options), expected))


@pytest.mark.parametrize(
    "choices",
    [
        {"mlp": "gated", "activation": "silu", "position": "rotary", "norm": "rmsnorm", "bias": False, "n_kv_head": 2},
        {"norm_order": "post", "bias": "qkv", "head_dim": 16, "qk_norm": "separate"},
    ],
)
def test_other_layers_are_packed_too(make_gpt: MakeGPT, choices: dict[str, Any]) -> None:
    gpt = make_gpt(**WIDE | choices).eval()
    fast = optimize_for_inference(copy.deepcopy(gpt), "float32")
    assert {type(block.mlp.fc) for block in fast.blocks} == {PackedLinear}
    torch.testing.assert_close(fast(TOKENS), gpt(TOKENS), atol=1e-4, rtol=1e-4)
    assert torch.equal(fast.generate(TOKENS[:, :3], 9, temperature=0), gpt.generate(TOKENS[:, :3], 9, temperature=0))


def test_bfloat16_is_near(make_gpt: MakeGPT) -> None:
    gpt = make_gpt(**WIDE).eval()
    quick = optimize_for_inference(copy.deepcopy(gpt), "bfloat16")
    logits, expected = quick(TOKENS), gpt(TOKENS)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).abs().mean() < 0.02 * expected.std()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_a_narrow_gpt_keeps_its_layers(make_gpt: MakeGPT, dtype: str) -> None:
    gpt = optimize_for_inference(make_gpt(), dtype)  # type: ignore[arg-type]
    assert isinstance(gpt.head, torch.nn.Linear)
    assert gpt.head.weight.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    assert gpt.generate(torch.ones(1, 1, dtype=torch.long), 5).shape == (1, 6)


def test_it_is_for_inference_only(make_gpt: MakeGPT) -> None:
    gpt = optimize_for_inference(make_gpt(**WIDE, dropout=0.5).train())
    assert not gpt.training
    assert not any(weight.requires_grad for weight in gpt.parameters())


def test_the_dtype_of_a_narrow_model_is_float32() -> None:
    assert fast_dtype(torch.device("cpu"), NARROW - 1) == torch.float32
    assert fast_dtype(torch.device("mps"), 4096) == torch.float32


def test_an_unknown_dtype_is_refused(make_gpt: MakeGPT) -> None:
    with pytest.raises(UserError, match=r"dtype=float8 is not possible.*float32"):
        optimize_for_inference(make_gpt(), "float8")  # type: ignore[arg-type]


def test_the_former_name_stays_for_a_version() -> None:
    assert inference.prepare is inference.optimize_for_inference

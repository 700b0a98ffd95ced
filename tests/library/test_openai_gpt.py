"""GPT-1: equal to transformers' in every number, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, OpenAIGPTConfig, OpenAIGPTLMHeadModel

from mingpt_lightning import GPT
from mingpt_lightning.errors import CheckpointError, UserError

SIZES = {"vocab_size": 60, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("safe", [True, False])
def test_it_computes_what_transformers_computes(activation: str, safe: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = OpenAIGPTLMHeadModel(OpenAIGPTConfig(**SIZES, afn=activation)).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    theirs.save_pretrained(tmp_path)
    if not safe:
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    gpt = GPT.from_pretrained(tmp_path)
    tokens = torch.randint(60, (3, 24))
    logits, expected = gpt(tokens), theirs(tokens).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    for found in (logits, expected):
        found.square().mean().backward()
    ours = gpt.get_parameter("blocks.0.attn.qkv.weight").grad
    assert ours is not None
    reference = theirs.get_parameter("transformer.h.0.attn.c_attn.weight").grad
    torch.testing.assert_close(ours, reference.T, rtol=1e-4, atol=1e-4)
    for use_cache in (True, False):
        text = gpt.generate(tokens[:, :5], 19, temperature=0, use_cache=use_cache)
        assert torch.equal(text[:, 5:], theirs(text[:, :-1]).logits.argmax(-1)[:, 4:])  # each is the likeliest there
    assert gpt.n_parameters == sum(weight.numel() for weight in theirs.parameters())


def test_what_gpt_would_compute_differently_is_refused(tmp_path: Path) -> None:
    OpenAIGPTLMHeadModel(OpenAIGPTConfig(**SIZES)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    before = path.read_text()
    for changes, message in (({"afn": "tanh"}, "afn=tanh, and this GPT takes one of"), ({"n_layer": 3}, "missing")):
        path.write_text(json.dumps(json.loads(before) | changes))
        with pytest.raises(CheckpointError, match=message):
            GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize("options", [{}, {"activation": "relu", "n_inner": 128}, {"activation": "silu"}], ids=str)
@pytest.mark.parametrize("changes", [{"dropout": [0.1, 0.2, 0.3]}, {"norm_eps": 1e-3, "bias": False}], ids=str)
def test_what_we_write_transformers_computes_alike(
    options: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    gpt = GPT(60, 24, n_layer=2, n_head=4, n_embd=32, norm_order="post", **options, **changes).eval()
    with torch.no_grad():
        for weight in gpt.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    gpt.save_pretrained(tmp_path / "ours")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(theirs) is OpenAIGPTLMHeadModel
    tokens = torch.randint(60, (3, 24))
    torch.testing.assert_close(gpt(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = GPT.from_pretrained(tmp_path / "theirs")
    assert again.config == gpt.config | {"n_inner": None, "bias": True}
    torch.testing.assert_close(again(tokens), gpt(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_inner": 40}, "transformers' GPT-1 has no n_inner=40"),
        ({"activation": "gelu"}, "transformers' GPT-1 has no activation=gelu"),
        ({"position": "rotary"}, "has no position=rotary"),
    ],
)
def test_what_gpt_1_lacks_is_not_written(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    gpt = GPT(60, 24, n_layer=2, n_head=4, n_embd=32, norm_order="post", **options)
    with pytest.raises(UserError, match=message):
        gpt.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()

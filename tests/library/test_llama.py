"""Llama, Mistral and Qwen: equal to transformers' in every number, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mingpt_lightning import GPT
from mingpt_lightning.errors import CheckpointError
from mingpt_lightning.llama import llama_arguments
from tests.llama_models import MODELS, T, V, make


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layout", ["safetensors", "shards", "bfloat16"])
def test_it_computes_what_transformers_computes(name: str, layout: str, tmp_path: Path) -> None:
    theirs = make(name)
    theirs = theirs.bfloat16() if layout == "bfloat16" else theirs
    theirs.save_pretrained(tmp_path, max_shard_size="10KB" if layout == "shards" else "1GB")
    theirs = MODELS[name][1].from_pretrained(tmp_path, dtype=torch.float32)
    gpt = GPT.from_pretrained(tmp_path)
    assert gpt.block_size == (24 if name == "mistral, window" else T)
    tokens = torch.randint(V, (3, min(T, gpt.block_size)))
    logits, expected = gpt(tokens), theirs(tokens).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=3e-5)
    grads = {}
    for model, found in ((gpt, logits), (theirs, expected)):
        found.square().mean().backward()
        grads[model] = {name: weight.grad for name, weight in model.named_parameters()}
    ours = grads[gpt]["blocks.1.attn.qkv.weight"]
    layer = "model.layers.1.self_attn.{}_proj.weight"
    torch.testing.assert_close(ours, torch.cat([grads[theirs][layer.format(x)] for x in "qkv"]), rtol=1e-4, atol=1e-4)
    assert gpt.n_parameters == sum(weight.numel() for weight in theirs.parameters())
    prompt = tokens[:, :5]
    text = theirs.generate(prompt, max_length=20, do_sample=False, pad_token_id=0)
    assert torch.equal(gpt.generate(prompt, 15, temperature=0), text)
    assert torch.equal(gpt.generate(prompt, 15, temperature=0, use_cache=False), text)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_transformers_computes_alike(name: str, tmp_path: Path) -> None:
    make(name).save_pretrained(tmp_path / "theirs")
    gpt = GPT.from_pretrained(tmp_path / "theirs")
    gpt.save_pretrained(tmp_path / "ours", license="apache-2.0")
    again = GPT.from_pretrained(tmp_path / "ours")
    assert gpt.config == again.config | {"head_dim": gpt.config["head_dim"]}
    assert all(map(torch.equal, gpt.parameters(), again.parameters()))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    kind = "llama" if name.startswith("mistral") else name[:5]
    assert (theirs.config.model_type, theirs.dtype) == (kind, torch.float32)
    tokens = torch.randint(V, (2, gpt.block_size))
    torch.testing.assert_close(gpt(tokens), theirs(tokens).logits, rtol=0, atol=3e-5)
    assert f"architecture {kind}" in (tmp_path / "ours/README.md").read_text()
    before, after = (load_file(tmp_path / place / "model.safetensors") for place in ("theirs", "ours"))
    assert before.keys() - after.keys() <= {"lm_head.weight"}  # which is tied
    assert all(torch.equal(before[name], after[name]) for name in before.keys() & after.keys())


def test_the_cache_keeps_only_the_heads_of_keys_and_values(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path)
    assert GPT.from_pretrained(tmp_path).new_cache(rows=3, size=7).memory.shape == (2, 2, 3, 2, 7, 8)


def test_a_config_of_earlier_versions_is_read(tmp_path: Path) -> None:
    theirs = make("llama 3")
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    scaling = config.pop("rope_parameters")
    config |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling, "pretraining_tp": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokens = torch.randint(V, (1, T))
    torch.testing.assert_close(GPT.from_pretrained(tmp_path)(tokens), theirs(tokens).logits, rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "mistral", "sliding_window": None}, {"block_size": 131072, "n_kv_head": 8}),
        ({"model_type": "mistral"}, {"block_size": 4096}),
        ({"model_type": "mistral", "num_key_value_heads": None}, {"n_kv_head": None}),
        ({"model_type": "llama"}, {"block_size": 2048, "n_kv_head": None, "bias": False, "tie_embeddings": False}),
        ({"model_type": "qwen2", "sliding_window": 4096}, {"block_size": 32768, "bias": "qkv"}),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": True}, {"block_size": 4096}),
        ({"model_type": "qwen3", "hidden_size": 1024}, {"head_dim": 128, "qk_norm": "separate"}),
        (
            {"model_type": "llama", "rope_parameters": None, "rope_theta": 5e5},
            {"rope_theta": 5e5, "rope_scaling": None},
        ),
    ],
)
def test_what_a_config_leaves_out_is_as_in_transformers(config: dict[str, Any], expected: dict[str, Any]) -> None:
    arguments, _ = llama_arguments(config, Path("config.json"))
    assert {name: arguments[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "attention_bias=True, and this GPT takes attention_bias=False only"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "tanh"}, "hidden_act=tanh, and this GPT takes one of silu"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "rope_type=yarn, and this GPT takes default",
        ),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor=None for rope_type=linear, not a positive number"),
        (
            {
                "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8}
                | {"low_freq_factor": 4.0, "high_freq_factor": 4.0}
            },
            "low_freq_factor=4.0, which is not less than high_freq_factor",
        ),
        ({"rope_parameters": [1]}, "rope settings"),
        ({"rope_parameters": {"rope_theta": -1}}, "rope_theta=-1, not a positive number"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rotates a part of each head"),
        ({"num_key_value_heads": 3}, "n_head=4 is not divisible by n_kv_head=3"),
        ({"hidden_size": "32"}, "hidden_size=32, and this GPT takes a positive integer"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings=no"),
        ({"model_type": "gemma"}, "model_type=gemma"),
        ({"model_type": ["llama"]}, "model_type=['llama']"),
        ({"model_type": "mistral", "sliding_window": "4096"}, "sliding_window=4096, not a positive integer"),
        ({"num_hidden_layers": 3}, "are not those of"),
        ({"intermediate_size": 40}, "are not those of"),
    ],
)
def test_what_gpt_would_compute_differently_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        GPT.from_pretrained(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("add model.layers.0.self_attn.q_norm.weight", "h.0.attn.qk_norm.q is unknown"),
        ("add model.layers.0.self_attn.r_proj.weight", "has a weight model.layers.0.self_attn.r_proj.weight"),
        ("drop model.layers.1.self_attn.k_proj.weight", "has no model.layers.1.self_attn.k_proj.weight"),
        ("drop model.layers.1.mlp.down_proj.weight", "h.1.mlp.c_proj.weight is missing"),
        ("cut model.layers.1.mlp.up_proj.weight", "at model.layers.1.mlp."),
        ("nan model.norm.weight", "holds NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit_are_named(change: str, message: str, tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    what, name = change.split()
    if what == "drop":
        del weights[name]
    else:
        new = {"add": torch.ones(8), "cut": torch.ones(48, 31), "nan": torch.full((32,), torch.nan)}[what]
        weights[name] = new
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        GPT.from_pretrained(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)

"""GGUF files: equal to the models that were converted, or refused by name."""

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mingpt_lightning import GPT
from mingpt_lightning.errors import CheckpointError, UserError
from mingpt_lightning.gguf_file import open_gguf
from tests.gguf_files import WIDE, Change, finish, is_conv1d, write_model
from tests.llama_models import LLAMA3, SIZES, make

V, T = SIZES["vocab_size"], SIZES["max_position_embeddings"]
OTHERS = {
    "llama": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "llama 3": {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 8192}},
}


def wide(name: str) -> PreTrainedModel:
    if name == "gpt2":
        torch.manual_seed(0)
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=V, n_positions=T, n_embd=64, n_layer=2, n_head=2, initializer_range=0.2)
        ).eval()
    return make(name, **WIDE, **OTHERS.get(name, {}))


def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out = model(tokens)
    return out if isinstance(out, torch.Tensor) else out.logits


TOKENS = torch.arange(3 * T).remainder(V).view(3, T).flip(0)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2"])
def test_it_computes_with_the_weights_that_quantisation_leaves(name: str, kind: str, tmp_path: Path) -> None:
    theirs, dtype = wide(name), gguf.GGMLQuantizationType[kind]
    ours = GPT.from_pretrained(write_model(tmp_path / "model.gguf", theirs, kind))
    with torch.no_grad():
        for place, weight in theirs.named_parameters():
            if weight.dim() == 2:
                rows = weight.T if is_conv1d(place) else weight
                left = gguf.quants.dequantize(gguf.quants.quantize(rows.contiguous().numpy(), dtype), dtype)
                weight.copy_(torch.tensor(left).T if is_conv1d(place) else torch.tensor(left))
    torch.testing.assert_close(ours(TOKENS), logits_of(theirs, TOKENS), atol=5e-5, rtol=1e-3)
    assert ours.config["dropout"] == 0


def llama3_frequencies(writer: gguf.GGUFWriter) -> None:
    plain = 500000.0 ** -(torch.arange(0, 16, 2) / 16)
    scaled = LlamaRotaryEmbedding(wide("llama 3").config).inv_freq
    writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy())


def linear(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(3.0)
    writer.add_key_length(12)
    writer.add_value_length(12)
    writer.add_rope_dimension_count(12)


@pytest.mark.parametrize(
    ("name", "change"),
    [("llama", None), ("qwen3", None), ("llama 3", llama3_frequencies), ("llama, linear", linear)],
)
def test_it_computes_what_the_model_did_that_was_converted(name: str, change: Change | None, tmp_path: Path) -> None:
    theirs = wide(name)
    ours = GPT.from_pretrained(write_model(tmp_path / "model.gguf", theirs, "F32", change))
    torch.testing.assert_close(ours(TOKENS), logits_of(theirs, TOKENS), atol=5e-5, rtol=1e-3)
    assert ours.config["norm_eps"] == theirs.config.rms_norm_eps  # and not 9.99e-07
    ours.save_pretrained(tmp_path / "folder")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "folder").eval()
    torch.testing.assert_close(logits_of(again, TOKENS), logits_of(theirs, TOKENS), atol=5e-5, rtol=1e-3)


def test_half_weights_stay_so_where_asked(tmp_path: Path) -> None:
    for kind, dtype in (("F16", torch.float16), ("BF16", torch.bfloat16)):
        tensors = dict(open_gguf(write_model(tmp_path / f"{kind}.gguf", wide("llama"), kind)).tensors())
        assert tensors["model.layers.1.mlp.down_proj.weight"].dtype == dtype


def refusal(file: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        GPT.from_pretrained(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), "rope_type=yarn"),
        (lambda w: w.add_uint32("llama.expert_count", 4), "llama.expert_count=4"),
        (
            lambda w: w.add_rope_dimension_count(4),
            "llama.rope.dimension_count=4, and this GPT takes the size of a head",
        ),
        (lambda w: w.add_uint16("split.count", 3), "is one of 3 files of a model"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.ones(5, np.float32)), "those of Llama 3"),
        (lambda w: w.add_tensor("blk.0.attn_gate.weight", np.ones(5, np.float32)), "blk.0.attn_gate.weight"),
        (lambda w: w.add_array("llama.attention.head_count_kv", [1, 2]), "num_key_value_heads"),
    ],
)
def test_what_a_gpt_cannot_compute_is_refused_by_name(change: Change, words: str, tmp_path: Path) -> None:
    assert words in refusal(write_model(tmp_path / "model.gguf", wide("llama"), "F32", change))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "gemma.gguf", "gemma")
    finish(writer)
    assert "general.architecture=gemma, and this GPT takes llama, qwen2, qwen3, gpt2" in refusal(
        tmp_path / "gemma.gguf"
    )


def test_a_quantisation_that_gguf_cannot_undo_is_refused(tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("blk.0.ffn_up.weight", np.zeros((96, 64), np.int8))

    theirs = wide("llama")
    state = {name: value for name, value in theirs.state_dict().items() if "layers.0.mlp.up_proj" not in name}
    theirs.state_dict = lambda: state  # type: ignore[method-assign]
    words = refusal(write_model(tmp_path / "model.gguf", theirs, "F32", change))
    assert "blk.0.ffn_up.weight as I8" in words


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_refused(keep: float, tmp_path: Path) -> None:
    file = write_model(tmp_path / "model.gguf", wide("llama"))
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    assert "damaged, or not all of the file" in refusal(file)


def test_without_the_package_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_model(tmp_path / "model.gguf", wide("llama"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"needs the package gguf .*pip install gguf"):
        GPT.from_pretrained(file)

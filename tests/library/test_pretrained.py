"""Pretrained: GPT-2 in every layout computes what transformers computes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mingpt_lightning import GPT, UserError
from tests.common import python
from tests.gpt2_files import (
    LAYOUTS,
    PREFIX,
    TOKENS,
    change_config,
    check_own_weights,
    compare,
    make_reference,
    refusal,
    write,
    write_layout,
)

HALVES = [
    (layout, dtype) for layout in LAYOUTS if all(layout[1:]) for dtype in (torch.float16, torch.bfloat16)
]  # how numbers are read does not depend on names


@pytest.mark.parametrize(("layout", "dtype"), [*((layout, torch.float32) for layout in LAYOUTS), *HALVES], ids=str)
def test_every_layout_computes_what_transformers_computes(
    reference: GPT2LMHeadModel, tmp_path: Path, layout: tuple, dtype: torch.dtype
) -> None:
    write_layout(reference, tmp_path, layout, dtype)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    gpt = GPT.from_pretrained(tmp_path)
    check_own_weights(gpt)
    assert {weight.dtype for weight in gpt.parameters()} == {torch.float32}
    compare(gpt, theirs)


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_what_transformers_writes_is_read(reference: GPT2LMHeadModel, tmp_path: Path, shard: str) -> None:
    reference.save_pretrained(tmp_path, max_shard_size=shard)
    assert len([*tmp_path.glob("*.safetensors")]) == (1 if shard == "5GB" else 7)
    compare(GPT.from_pretrained(tmp_path), make_reference())


def test_a_bin_file_as_old_as_gpt2_is_read(reference: GPT2LMHeadModel, tmp_path: Path) -> None:
    write_layout(reference, tmp_path, ("bin", False, True, False))
    path = tmp_path / "pytorch_model.bin"
    torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)
    compare(GPT.from_pretrained(tmp_path), make_reference())


def test_weights_that_share_memory_in_a_file_are_separated(reference: GPT2LMHeadModel, tmp_path: Path) -> None:
    write_layout(reference, tmp_path, ("bin", True, False, False))
    weights = torch.load(tmp_path / "pytorch_model.bin")
    weights[f"{PREFIX}h.1.ln_1.weight"] = weights[f"{PREFIX}h.0.ln_1.weight"]
    weights[f"{PREFIX}h.0.ln_2.weight"] = torch.nn.Parameter(torch.randn(64)[:32])
    write(tmp_path, weights, "bin")
    gpt = GPT.from_pretrained(tmp_path)
    check_own_weights(gpt)
    compare(gpt, GPT2LMHeadModel.from_pretrained(tmp_path).eval())


def test_safetensors_come_before_bin(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    (folder / "model.safetensors.index.json").write_text("never read")
    GPT.from_pretrained(folder)


def test_the_random_numbers_stay_as_they_are(folder: Path) -> None:
    state = torch.get_rng_state()
    GPT.from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_weights_take_the_wanted_dtype(folder: Path, dtype: torch.dtype) -> None:
    gpt, exact = GPT.from_pretrained(folder, dtype=dtype), GPT.from_pretrained(folder)
    check_own_weights(gpt)
    assert all(
        torch.equal(ours, other.to(dtype)) for ours, other in zip(gpt.parameters(), exact.parameters(), strict=True)
    )


def test_a_dtype_without_fractions_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"dtype=torch\.int8"):
        GPT.from_pretrained(folder, dtype=torch.int8)


SAME = [{"activation_function": name} for name in ("gelu_pytorch_tanh", "gelu_fast")]  # as the default


@pytest.mark.parametrize(
    "options",
    [
        *SAME,
        {"n_inner": 40},
        {"layer_norm_epsilon": 0.5},
        *(
            {"activation_function": name}
            for name in ("gelu_pytorch_tanh", "gelu_fast", "gelu", "relu", "silu", "swish")
        ),
    ],
    ids=str,
)
def test_options_of_the_config_are_honoured(tmp_path: Path, options: dict[str, Any]) -> None:
    theirs = make_reference(**options)
    theirs.save_pretrained(tmp_path)
    gpt = GPT.from_pretrained(tmp_path)
    compare(gpt, theirs)
    if options not in SAME:
        assert (gpt(TOKENS) - make_reference()(TOKENS).logits).abs().max() > 2e-5


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ((0.0, 0.0, 0.0), 0.0),
        ((0.3, 0.3, 0.3), 0.3),
        ((0.1, 0.2, 0.3), [0.1, 0.2, 0.3]),
        ((0, 0.0, 0.5), [0, 0.0, 0.5]),
    ],
)
def test_dropout_is_that_of_the_config(folder: Path, rates: tuple[float, ...], expected: object) -> None:
    change_config(folder, **dict(zip(("embd_pdrop", "attn_pdrop", "resid_pdrop"), rates, strict=True)))
    assert GPT.from_pretrained(folder).config["dropout"] == expected
    assert GPT.from_pretrained(folder, dropout=0.25).config["dropout"] == 0.25
    assert GPT.from_pretrained(folder, dropout=[0.1, 0.0, 0.2]).config["dropout"] == [0.1, 0.0, 0.2]


def test_a_dropout_outside_of_0_to_1_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"dropout=1\.5"):
        GPT.from_pretrained(folder, dropout=1.5)


def test_other_names_and_defaults_of_the_config_are_known(folder: Path) -> None:
    config = {"vocab_size": 61, "hidden_size": 32, "max_position_embeddings": 24, "n_layer": 2}
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4, "num_hidden_layers": 2}))
    gpt = GPT.from_pretrained(folder)
    assert gpt.config == GPT(61, 24, n_layer=2, n_head=4, n_embd=32, dropout=0.1).config
    compare(gpt, make_reference())
    (folder / "config.json").write_text("{}")
    assert "h.0.mlp.c_fc.weight is torch.float32 [32, 128], not [768, 3072]" in refusal(folder)


def test_a_smaller_block_keeps_the_first_positions(folder: Path) -> None:
    gpt, whole = GPT.from_pretrained(folder, block_size=10), GPT.from_pretrained(folder, block_size=24)
    check_own_weights(gpt)
    assert (gpt.block_size, gpt.config["block_size"], whole.block_size) == (10, 10, 24)
    torch.testing.assert_close(gpt(TOKENS[:, :10]), whole(TOKENS[:, :10]), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="block_size=25"):
        GPT.from_pretrained(folder, block_size=25)


def test_a_larger_vocabulary_keeps_the_old_tokens(folder: Path) -> None:
    gpt, before = GPT.from_pretrained(folder, vocab_size=64), GPT.from_pretrained(folder, vocab_size=61)
    check_own_weights(gpt)
    assert gpt(TOKENS).shape[-1] == 64
    torch.testing.assert_close(gpt(TOKENS)[..., :61], before(TOKENS), rtol=0, atol=1e-5)


def test_a_smaller_vocabulary_is_refused_with_a_way_out(folder: Path) -> None:
    with pytest.raises(UserError, match=rf"has 61 tokens and the data has 10 .*tokenizer={folder}"):
        GPT.from_pretrained(folder, vocab_size=10)


MEASURE = """
import sys, torch, safetensors.torch, mingpt_lightning.pretrained
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
before = peak()
gpt = mingpt_lightning.pretrained.from_pretrained(sys.argv[1])
assert not "transformers" in sys.modules
print((peak() - before) / sum(weight.nbytes for weight in gpt.parameters()))
"""


def peak_memory(folder: Path) -> float:
    """The memory that reading a model takes at its peak, in multiples of the weights."""
    return float(python(MEASURE, str(folder)).stdout)


@pytest.mark.slow
def test_gpt2_itself_takes_little_more_memory_than_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(initializer_range=0.05)).eval()
    theirs.save_pretrained(tmp_path / "safetensors")
    gpt = GPT.from_pretrained(tmp_path / "safetensors")
    assert gpt.n_parameters == 124_439_808
    tokens = torch.randint(50257, (1, 6))
    with torch.no_grad():
        torch.testing.assert_close(gpt(tokens), theirs(tokens).logits, rtol=0, atol=1e-4)
    (tmp_path / "bin").mkdir()
    theirs.config.save_pretrained(tmp_path / "bin")
    torch.save(theirs.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    del gpt, theirs
    if sys.platform == "linux":
        assert peak_memory(tmp_path / "safetensors") < 1.3
        assert peak_memory(tmp_path / "bin") < 1.3

"""Pretrained: files that are damaged, or would be computed wrongly, are refused by name."""

import json
import math
import pickle
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from mingpt_lightning import GPT
from mingpt_lightning.errors import CheckpointError
from tests.common import Canary
from tests.gpt2_files import HEAD, KINDS, PREFIX, change_config, change_weights, refusal, write_layout


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "bert"),
        ("scale_attn_weights", "no"),
        ("add_cross_attention", True),
        ("quantization_config", {"quant_method": "gptq"}),
        ("activation_function", "mish"),
        ("activation_function", "gelu_10"),
        ("activation_function", ["gelu"]),
        ("activation_function", None),
        *product(("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"), (0, -1, 2.0, "2", True, None, 10**30)),
        ("n_inner", 2.5),
        ("n_inner", 0),
        ("layer_norm_epsilon", "small"),
        ("layer_norm_epsilon", math.nan),
        ("embd_pdrop", 1.0),
        ("attn_pdrop", None),
        ("resid_pdrop", -0.1),
    ],
)
def test_a_config_that_would_be_computed_wrongly_is_refused(folder: Path, key: str, value: object) -> None:
    change_config(folder, **{key: value})
    assert f"config.json has {key}={value}, " in refusal(folder)


def test_sizes_that_contradict_are_refused(folder: Path) -> None:
    change_config(folder, n_head=8, num_attention_heads=4)
    assert "n_head=4" in refusal(folder)
    change_config(folder, n_head=3, num_attention_heads=3)
    assert "n_embd=32 is not divisible by n_head=3" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"garbage"])
def test_a_config_that_is_not_json_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_without_a_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"holds no {name}" in refusal(folder)


WTE, QKV = f"{PREFIX}wte.weight", f"{PREFIX}h.1.attn.c_attn.weight"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda weights: weights.pop(QKV), "h.1.attn.c_attn.weight is missing"),
        (lambda weights: weights.pop(WTE), "wte.weight is missing"),
        (lambda weights: weights.clear(), "wte.weight is missing; wpe.weight is missing; .* and 25 more"),
        (lambda weights: weights.update({f"{PREFIX}h.2.ln_1.bias": torch.ones(32)}), "h.2.ln_1.bias is unknown"),
        (lambda weights: weights.update({f"{PREFIX}attn.bias": torch.ones(2)}), "attn.bias is unknown"),
        (lambda weights: weights.update({QKV: weights[QKV].T.contiguous()}), r"c_attn.* \[96, 32\], not \[32, 96\]"),
        (lambda weights: weights.update({WTE: torch.ones(60, 32)}), r"wte.weight .*\[60, 32\], not \[61, 32\]"),
        (lambda weights: weights.update({WTE: torch.ones(61, 32, dtype=torch.int8)}), r"torch.int8 \[61, 32\]"),
        (lambda weights: weights.update({HEAD: weights[WTE] + 1e-3}), "lm_head.weight and .*wte.weight differ"),
        (lambda weights: weights.update({QKV[12:]: weights[QKV] + 1}), "h.1.attn.c_attn.weight and .* differ"),
        (lambda weights: weights[QKV][3, 4].fill_(math.nan), "c_attn.weight holds NaN or infinity"),
        (lambda weights: weights[WTE][60, 31].fill_(-math.inf), "wte.weight holds NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit_are_named(folder: Path, change: Callable, expected: str) -> None:
    change_weights(folder, change)
    with pytest.raises(CheckpointError, match=expected):
        GPT.from_pretrained(folder)


def test_finite_weights_may_be_as_large_as_they_can(folder: Path) -> None:
    change_weights(folder, lambda weights: weights[QKV].fill_(torch.finfo(torch.float32).max))
    GPT.from_pretrained(folder)
    assert "c_attn.weight holds NaN or infinity" in refusal(folder, dtype=torch.float16)


def truncate(path: Path, size: float) -> None:
    path.write_bytes(path.read_bytes()[: int(size * path.stat().st_size)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x00garbage" * 100),
        lambda path: path.write_bytes(b"\x80\x02garbage" * 100),
        lambda path: path.write_bytes((2**62).to_bytes(8, "little") + b"{}"),
        lambda path: truncate(path, 0.01),
        lambda path: truncate(path, 0.5),
        lambda path: truncate(path, 0.999),
    ],
)
def test_a_damaged_file_is_named(
    reference: GPT2LMHeadModel, tmp_path: Path, kind: str, damage: Callable[[Path], object]
) -> None:
    write_layout(reference, tmp_path, (kind, True, False, False))
    path = sorted(path for path in tmp_path.iterdir() if path.suffix != ".json")[-1]
    damage(path)
    assert f"{path} cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content",
    [[1], {"a": 1}, {1: torch.ones(2)}, {"a": {"b": torch.ones(2)}}, {"a": torch.ones(2).to_sparse()}, None],
    ids=str,
)
def test_a_bin_file_of_something_else_is_refused(folder: Path, content: object) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    assert "pytorch_model.bin cannot be read" in refusal(folder)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))])
def test_nothing_in_a_file_is_executed(folder: Path, tmp_path: Path, save: Callable[[object, Path], object]) -> None:
    (folder / "model.safetensors").unlink()
    save({"wte.weight": Canary(tmp_path / "canary")}, folder / "pytorch_model.bin")
    assert "pytorch_model.bin cannot be read" in refusal(folder)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", ["sharded safetensors", "sharded bin"])
def test_a_missing_shard_is_named(reference: GPT2LMHeadModel, tmp_path: Path, kind: str) -> None:
    write_layout(reference, tmp_path, (kind, True, False, False))
    path = sorted(tmp_path.glob("*00002-of*"))[0]
    path.unlink()
    assert f"holds no {path.name}" in refusal(tmp_path)


@pytest.mark.parametrize(
    "shards",
    [
        *(
            {"wte.weight": name}
            for name in ("../a.bin", "/etc/a.bin", "a/b.bin", "..", "a\\b.bin", "config.json", 3, None)
        ),
        {},
        [],
        None,
        "model.safetensors",
    ],
    ids=str,
)
def test_an_index_that_names_no_files_beside_it_is_refused(folder: Path, shards: object) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert "model.safetensors.index.json keeps weights in" in refusal(folder)

"""Pretrained: GPT-2 in every layout computes what transformers computes, and whatever else there is gets refused."""

import json
import logging
import math
import os
import pickle
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from mingpt_lightning import GPT, CharTokenizer, UserError
from mingpt_lightning.errors import CheckpointError, ResourceError
from mingpt_lightning.tokenizer import BPETokenizer, Tokenizer
from tests.common import ROOT

SIZES = {"vocab_size": 61, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}
SPECIAL = {"bos_token_id": None, "eos_token_id": None}  # by default outside of so small a vocabulary
TOKENS = torch.randint(61, (3, 24), generator=torch.Generator().manual_seed(1))
PREFIX, HEAD = "transformer.", "lm_head.weight"
KINDS = ["safetensors", "sharded safetensors", "bin", "sharded bin"]
LAYOUTS = [*product(KINDS, [True, False], [False, True], [False, True])]  # kind, prefix, masks, head


def make_reference(**options: Any) -> GPT2LMHeadModel:
    """Hugging Face's GPT-2 with random weights, large enough that each detail shows."""
    torch.manual_seed(0)
    reference = GPT2LMHeadModel(GPT2Config(**SIZES | SPECIAL | options, initializer_range=0.2)).eval()
    with torch.no_grad():
        for weight in reference.parameters():
            if weight.dim() == 1:  # biases of 0 and gains of 1 would hide a mistake
                weight += 0.2 * torch.randn_like(weight)
    return reference


def write(folder: Path, weights: dict[str, Tensor], kind: str = "safetensors") -> None:
    """Write weights as one file or as three shards with an index."""

    def save(part: dict[str, Tensor], name: str) -> None:
        if "bin" in kind:
            torch.save(part, folder / name)
        else:
            save_file({key: value.clone() for key, value in part.items()}, folder / name, metadata={"format": "pt"})

    stem, end = ("pytorch_model", "bin") if "bin" in kind else ("model", "safetensors")
    if "sharded" not in kind:
        return save(weights, f"{stem}.{end}")
    shards = {name: f"{stem}-0000{i % 3 + 1}-of-00003.{end}" for i, name in enumerate(weights)}
    for shard in set(shards.values()):
        save({name: weights[name] for name in weights if shards[name] == shard}, shard)
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def write_layout(reference: GPT2LMHeadModel, folder: Path, layout: tuple, dtype: torch.dtype = torch.float32) -> None:
    """Write a model in one of LAYOUTS."""
    kind, prefix, masks, head = layout
    weights = {name: value.to(dtype) for name, value in reference.state_dict().items() if name != HEAD}
    if masks:
        for i in range(SIZES["n_layer"]):
            weights[f"{PREFIX}h.{i}.attn.bias"] = torch.ones(1, 1, 24, 24, dtype=torch.bool).tril()
            weights[f"{PREFIX}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    if not prefix:
        weights = {name.removeprefix(PREFIX): value for name, value in weights.items()}
    if head:
        weights[HEAD] = weights["wte.weight" if not prefix else f"{PREFIX}wte.weight"]
    folder.mkdir(parents=True, exist_ok=True)
    reference.config.save_pretrained(folder)
    write(folder, weights, kind)


def gradients(model: torch.nn.Module, logits: Tensor) -> dict[str, Tensor]:
    """The gradient of each parameter under Hugging Face's name and in its shape."""
    F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    parts = {"token_embedding": "wte", "position_embedding": "wpe", "blocks": "h", "norm_1": "ln_1", "norm_2": "ln_2"}
    parts |= {"norm": "ln_f", "qkv": "c_attn", "fc": "c_fc", "proj": "c_proj"}
    result = {}
    for name, weight in model.named_parameters():
        grad = weight.grad
        assert grad is not None, name
        if name.endswith(("qkv.weight", "fc.weight", "proj.weight")) and isinstance(model, GPT):
            grad = grad.T
        result[".".join(parts.get(part, part) for part in name.removeprefix(PREFIX).split("."))] = grad
    return result


def compare(gpt: GPT, reference: GPT2LMHeadModel) -> float:
    """Assert equal logits, gradients and greedy continuations; returns the largest difference of the logits."""
    ours, theirs = gpt(TOKENS), reference(TOKENS).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradients(gpt, ours), gradients(reference, theirs), rtol=0, atol=1e-5)
    prompt = TOKENS[:, :4]
    mask = torch.ones_like(prompt)
    text = reference.generate(prompt, attention_mask=mask, max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert torch.equal(gpt.generate(prompt, 20, temperature=0), text)
    return (ours - theirs).abs().max().item()


def check_own_weights(gpt: GPT) -> None:
    """Assert that the GPT is ready to train: tied, in evaluation mode, every parameter in memory of its own."""
    assert gpt.head.weight is gpt.token_embedding.weight
    assert not any(module.training for module in gpt.modules())
    weights = [*gpt.parameters()]
    assert all(weight.requires_grad and weight.is_leaf and weight.is_contiguous() for weight in weights)
    assert all(weight.untyped_storage().nbytes() == weight.nbytes for weight in weights)
    assert len({weight.untyped_storage().data_ptr() for weight in weights}) == len(weights)


@pytest.fixture(scope="module")
def reference() -> GPT2LMHeadModel:
    return make_reference()


@pytest.fixture
def folder(reference: GPT2LMHeadModel, tmp_path: Path) -> Path:
    """A model in the plainest layout."""
    write_layout(reference, tmp_path, ("safetensors", True, False, False))
    return tmp_path


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    write(folder, weights)


def refusal(folder: Path, **changes: Any) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(CheckpointError) as caught:
        GPT.from_pretrained(folder, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "bert"),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("reorder_and_upcast_attn", True),
        ("add_cross_attention", True),
        ("tie_word_embeddings", False),
        ("quantization_config", {"quant_method": "gptq"}),
        ("activation_function", "quick_gelu"),
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
        (lambda weights: weights.update({"score.weight": torch.ones(2)}), "score.weight is unknown"),
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


class Canary:
    """Creates a file when it is unpickled by a reader that executes what it reads."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


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
    with pytest.raises(UserError, match=rf"has 61 tokens and the data has 10 .*datamodule\.tokenizer={folder}"):
        GPT.from_pretrained(folder, vocab_size=10)


@pytest.fixture
def quiet() -> Iterator[list[str]]:
    """Asserts that transformers warns of nothing meanwhile."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    yield messages
    logging.getLogger("transformers").removeHandler(handler)
    assert messages == []


def test_the_fixture_hears_transformers(quiet: list[str]) -> None:
    logging.getLogger("transformers.modeling_utils").warning("a test")
    assert quiet.pop() == "a test"


def make_gpt(**options: Any) -> GPT:
    """A GPT with no weight that is trivially 0 or 1."""
    gpt = GPT(**{"vocab_size": 61, "block_size": 24, "n_layer": 2, "n_head": 4, "n_embd": 32} | options).eval()
    with torch.no_grad():
        for weight in gpt.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return gpt


OPTIONS: list[dict[str, Any]] = [
    {},
    {"dropout": 0.2},
    {"dropout": [0.1, 0.2, 0.3]},
    {"n_inner": 40, "norm_eps": 1e-3},
    *({"activation": name} for name in ("gelu", "relu", "silu")),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_we_write_transformers_computes_alike(tmp_path: Path, quiet: list[str], options: dict[str, Any]) -> None:
    gpt = make_gpt(**options)
    gpt.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(theirs) is GPT2LMHeadModel
    compare(gpt, theirs)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    if options.get("dropout"):
        rates = options["dropout"] if isinstance(options["dropout"], list) else [0.2] * 3
        assert [theirs.config.embd_pdrop, theirs.config.attn_pdrop, theirs.config.resid_pdrop] == rates


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_there_and_back_again_every_bit_is_the_same(tmp_path: Path, quiet: list[str], dtype: torch.dtype) -> None:
    gpt = make_gpt(dropout=[0.1, 0.0, 0.2], n_inner=40, activation="silu", norm_eps=1e-6).to(dtype)
    gpt.save_pretrained(tmp_path / "ours")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert theirs.dtype == dtype
    theirs.save_pretrained(tmp_path / "theirs")
    again = GPT.from_pretrained(tmp_path / "theirs", dtype=dtype)
    assert again.config == gpt.config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), gpt.parameters(), strict=True))
    again.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()


TEXT = "Hello  world, it's a déjà-vu 日本 🙂\n\n  x ."
TOKENIZERS = {
    "characters": lambda: CharTokenizer(TEXT),
    "characters that skip": lambda: CharTokenizer(TEXT, on_unknown="skip"),
    "bytes": lambda: BPETokenizer.train([TEXT] * 3 + ["the end"], vocab_size=280),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_comes_along(tmp_path: Path, quiet: list[str], name: str) -> None:
    tokenizer: Tokenizer = TOKENIZERS[name]()
    gpt = make_gpt(vocab_size=tokenizer.vocab_size, block_size=100)
    gpt.save_pretrained(tmp_path, tokenizer)
    theirs, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = theirs(TEXT)["input_ids"]
    assert ids == tokenizer.encode(TEXT)
    assert theirs.decode(ids) == tokenizer.decode(ids) == TEXT
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.model_max_length == 100
    end = getattr(tokenizer, "end_of_text", None)
    assert [theirs.eos_token_id, theirs.bos_token_id, model.config.eos_token_id, model.config.bos_token_id] == [end] * 4
    assert (model.generation_config.eos_token_id, end is None) == (end, name != "bytes")
    batch = theirs(["Hello", "Hello"], return_tensors="pt")
    theirs_text = model.generate(**batch, max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(gpt.generate(batch["input_ids"], 20, temperature=0), theirs_text)


def test_the_card_says_how_large_the_model_is_and_is_never_overwritten(tmp_path: Path) -> None:
    make_gpt().save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert all(part in card for part in (f"{make_gpt().n_parameters:,}", "block_size=24", "AutoModelForCausalLM"))
    (tmp_path / "README.md").write_text("my own words")
    make_gpt().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own words"


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    make_gpt().save_pretrained(tmp_path / "new" / "folder")
    assert len({stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new" / "folder").iterdir()}) == 1


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"cannot write .*file"):
        make_gpt().save_pretrained(tmp_path / "file")


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    gpt, limits = make_gpt(), resource.getrlimit(resource.RLIMIT_FSIZE)
    gpt.save_pretrained(tmp_path)
    before = sorted(tmp_path.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(ResourceError, match=r"cannot write .*model\.safetensors") as caught:
            make_gpt().save_pretrained(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
    again = GPT.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), gpt.parameters(), strict=True))


def test_an_activation_that_transformers_lacks_is_refused(tmp_path: Path) -> None:
    gpt = make_gpt()
    gpt.config["activation"] = "snake"
    with pytest.raises(UserError, match="activation=snake"):
        gpt.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


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
    command = [sys.executable, "-c", MEASURE, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


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

"""Weights of a GPT-2 in whatever files they are: the logits are those of transformers, or the file is named."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2LMHeadModel

from mingpt_lightning import GPT, UserError
from mingpt_lightning.errors import CheckpointError
from tests.gpt2_files import State, check, logits, theirs


@pytest.mark.parametrize(
    "config",
    [
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"reorder_and_upcast_attn": True},
        {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True, "scale_attn_weights": False},
        {"tie_word_embeddings": False},
    ],
    ids=lambda config: " ".join(config),
)
def test_settings_that_change_little_are_computed(tmp_path: Path, config: dict[str, bool]) -> None:
    model = theirs(**config)
    if not model.config.tie_word_embeddings:
        torch.nn.init.normal_(model.lm_head.weight)
    model.save_pretrained(tmp_path / "in")
    gpt = GPT.from_pretrained(tmp_path / "in")
    check(gpt, model)
    gpt.save_pretrained(tmp_path / "out")
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(again), logits(model), atol=2e-5, rtol=1e-5)
    check(GPT.from_pretrained(tmp_path / "out"), model)


def saved(folder: Path, change: Callable[[State], State], **config: Any) -> GPT2LMHeadModel:
    """A model in a folder whose names of weights are changed."""
    model = theirs(**config)
    model.save_pretrained(folder)
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    save_file(change(state), folder / "model.safetensors", metadata={"format": "pt"})
    return model


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "gpt.", "module.model._orig_mod."])
@pytest.mark.parametrize("inner", [True, False])
def test_what_wraps_a_model_is_taken_off_its_names(
    tmp_path: Path, prefix: str, inner: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(state: State) -> State:
        return {prefix + (name if inner else name.removeprefix("transformer.")): w for name, w in state.items()}

    model = saved(tmp_path, change)
    check(GPT.from_pretrained(tmp_path), model)
    assert f"note: names of weights begin with '{prefix}', which is left out" in capsys.readouterr().err


def test_other_heads_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"v_head.summary.weight": torch.ones(1, 48), "score.weight": torch.ones(2, 48)}
    model = saved(tmp_path, lambda state: {**state, **more})
    check(GPT.from_pretrained(tmp_path), model)
    note = "note: left out, as no part of the language model: score.weight, v_head.summary.weight"
    assert note in capsys.readouterr().err
    dialo = saved(tmp_path, lambda state: {**state, "lm_head.decoder.weight": state["transformer.wte.weight"].clone()})
    capsys.readouterr()
    check(GPT.from_pretrained(tmp_path), dialo)
    assert capsys.readouterr().err == ""
    for name in ("lm_head.bias", "transformer.h.0.crossattention.c_attn.bias", "transformer.h.3.ln_1.weight"):
        saved(tmp_path, lambda state, name=name: {**state, name: torch.ones(60)})  # type: ignore[misc]
        with pytest.raises(CheckpointError, match=re.escape(f"{name} is unknown")):
            GPT.from_pretrained(tmp_path)
    saved(tmp_path, lambda state: {n: w for n, w in state.items() if "ln_f" not in n} | more)
    with pytest.raises(CheckpointError, match=r"ln_f\.weight is missing"):
        GPT.from_pretrained(tmp_path)


def test_half_precision_stays_when_asked_for(tmp_path: Path) -> None:
    model = theirs().half()
    model.save_pretrained(tmp_path)
    assert GPT.from_pretrained(tmp_path).head.weight.dtype == torch.float32
    gpt = GPT.from_pretrained(tmp_path, dtype=None)
    assert {weight.dtype for weight in gpt.parameters()} == {torch.float16}
    gpt.save_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"


PAGE = b"\n<!DOCTYPE html><html><body>404</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548118077\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", POINTER, "is a pointer of git-lfs, not the file itself: `git lfs pull` fetches it"),
        ("model.safetensors", PAGE, "is a web page, not the file itself"),
        ("model.safetensors", b"", "is empty"),
        ("model.safetensors", None, "is not all of the file: it has 9,000 of "),
        ("pytorch_model.bin", POINTER, "is a pointer of git-lfs"),
        ("pytorch_model.bin", PAGE, "is a web page"),
        ("pytorch_model.bin", None, "is not all of the file: it ends after 9,000 bytes"),
        ("config.json", POINTER, "is a pointer of git-lfs"),
        ("config.json", PAGE, "is a web page"),
        ("ckpt.pt", None, "is not all of the file: it ends after 9,000 bytes"),
        ("ckpt.pt", POINTER, "is a pointer of git-lfs"),
        ("ckpt.pt", b"Entry not found", "is 'Entry not found', not the file itself"),
        ("config.json", b'{"n_layer": 3, "n_head"', "is not all of the file: it ends in the middle"),
        ("config.json", b'{"n_layer": 3, "n_he', "is not all of the file: it ends in the middle"),
    ],
)
def test_a_damaged_download_is_called_what_it_is(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    model = theirs()
    model.save_pretrained(tmp_path)
    if name.endswith(".bin"):
        (tmp_path / "model.safetensors").unlink()
    if content is None and name != "model.safetensors":
        torch.save(model.state_dict(), tmp_path / name)
    whole = (tmp_path / name).read_bytes()[:9000] if content is None else content
    (tmp_path / name).write_bytes(whole)
    with pytest.raises(CheckpointError) as caught:
        GPT.from_pretrained(tmp_path / name if name == "ckpt.pt" else tmp_path)
    assert f"{tmp_path / name} cannot be read: it {message}" in str(caught.value)


def test_several_precisions_in_one_file_become_the_widest(tmp_path: Path) -> None:
    model = saved(tmp_path, lambda state: {n: w.half() if ".mlp." in n else w for n, w in state.items()})
    gpt = GPT.from_pretrained(tmp_path, dtype=None)
    assert {weight.dtype for weight in gpt.parameters()} == {torch.float32}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(weight.half().float() if ".mlp." in name else weight)
    check(gpt, model)


def test_a_setting_that_is_folded_into_half_precision_is_not_rounded(tmp_path: Path) -> None:
    model = theirs(scale_attn_by_inverse_layer_idx=True).half()
    model.save_pretrained(tmp_path)
    gpt = GPT.from_pretrained(tmp_path, dtype=None)
    assert gpt.head.weight.dtype == torch.float32
    check(gpt, model.float())


def test_several_models_in_one_file_are_named(tmp_path: Path) -> None:
    saved(tmp_path, lambda state: {f"{who}.{n}": w.clone() for who in ("student", "teacher") for n, w in state.items()})
    with pytest.raises(CheckpointError, match=r"several models, whose names begin with 'student\.' and 'teacher\.'"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["gelu_python", "gelu_accurate", "gelu_python_tanh", "relu2"])
def test_an_activation_has_many_names(tmp_path: Path, name: str) -> None:
    model = theirs(activation_function=name)
    model.save_pretrained(tmp_path)
    check(GPT.from_pretrained(tmp_path), model)


def test_a_model_without_biases_is_exported_with_zeros(tmp_path: Path) -> None:
    torch.manual_seed(0)
    gpt = GPT(60, 16, n_layer=2, n_head=3, n_embd=48, bias=False, activation="relu_squared").eval()
    with torch.no_grad():
        for weight in gpt.parameters():
            weight += 0.2 * torch.randn_like(weight)
    gpt.save_pretrained(tmp_path)
    model = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    check(gpt, model)
    check(GPT.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_weights_that_are_not_finite_are_not_exported(tmp_path: Path, value: float) -> None:
    gpt = GPT(60, 16, n_layer=1, n_head=3, n_embd=48)
    with torch.no_grad():
        gpt.blocks[0].mlp.fc.weight[2, 3] = value
    with pytest.raises(UserError, match=r"blocks\.0\.mlp\.fc\.weight holds NaN or infinity in float16.*choose float32"):
        gpt.half().save_pretrained(tmp_path)

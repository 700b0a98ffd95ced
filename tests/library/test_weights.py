"""Weights of a GPT-2 in whatever files they are: the logits are those of transformers, or the file is named."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from mingpt_lightning import GPT, UserError
from mingpt_lightning.errors import CheckpointError

TOKENS = torch.arange(48).reshape(4, 12) * 7 % 60
SIZES = {"vocab_size": 60, "n_positions": 16, "n_embd": 48, "n_layer": 3, "n_head": 3}
State = dict[str, Tensor]


def theirs(**config: Any) -> GPT2LMHeadModel:
    """A GPT-2 of transformers, with weights that make its logits differ."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**SIZES | config, initializer_range=0.3)).eval()


def logits(model: GPT2LMHeadModel) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def check(gpt: GPT, model: GPT2LMHeadModel) -> None:
    with torch.no_grad():
        torch.testing.assert_close(gpt(TOKENS), logits(model), atol=2e-5, rtol=1e-5)


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


def linear(state: State) -> State:
    """The weights as nanoGPT and minGPT have them: of linear layers, not of Conv1D."""
    return {
        name: weight.T.contiguous() if re.search(r"(c_attn|c_proj|c_fc)\.weight$", name) else weight.clone()
        for name, weight in state.items()
    }


def nanogpt(model: GPT2LMHeadModel, **more: Any) -> dict[str, Any]:
    """What nanoGPT's train.py writes; with torch.compile, its names begin with _orig_mod."""
    arguments = {"n_layer": 3, "n_head": 3, "n_embd": 48, "block_size": 16, "bias": True, "vocab_size": 60}
    state = {f"_orig_mod.{name}": weight for name, weight in linear(model.state_dict()).items()}
    best = torch.tensor(2.5)
    return {"model": state, "model_args": {**arguments, "dropout": 0.2}, "iter_num": 9, "best_val_loss": best} | more


def test_a_checkpoint_of_nanogpt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = theirs(activation_function="gelu")
    torch.save(nanogpt(model, config={"dataset": "x"}, optimizer={"state": {}}), tmp_path / "ckpt.pt")
    gpt = GPT.from_pretrained(tmp_path / "ckpt.pt")
    check(gpt, model)
    assert (gpt.config["activation"], gpt.config["dropout"]) == ("gelu", 0.2)
    assert f"note: {tmp_path / 'ckpt.pt'} is read as the weights of nanoGPT" in capsys.readouterr().err
    gpt.save_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()), logits(model))


def test_a_checkpoint_of_nanogpt_without_biases(tmp_path: Path) -> None:
    model = theirs(activation_function="gelu")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
    content = nanogpt(model)
    content["model"] = {name: weight for name, weight in content["model"].items() if not name.endswith("bias")}
    content["model_args"]["bias"] = False
    torch.save(content, tmp_path / "ckpt.pt")
    check(GPT.from_pretrained(tmp_path / "ckpt.pt"), model)


@pytest.mark.parametrize("beside", [True, False])
def test_a_checkpoint_of_mingpt(tmp_path: Path, beside: bool) -> None:
    model = theirs(tie_word_embeddings=False, **({} if beside else {"n_embd": 32, "n_head": 2}))
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 16, 16) for layer in range(3)}
    torch.save(linear(model.state_dict()) | masks, tmp_path / "model.pt")
    if beside:
        (tmp_path / "config.json").write_text(json.dumps({"system": {"seed": 1}, "model": {"n_head": 3}}))
        check(GPT.from_pretrained(tmp_path / "model.pt"), model)
    else:
        with pytest.raises(UserError, match=r"does not tell how many heads its 32 units.*Give n_head="):
            GPT.from_pretrained(tmp_path / "model.pt")
        check(GPT.from_pretrained(tmp_path / "model.pt", n_head=2), model)


@pytest.mark.parametrize("prefix", ["model.", "gpt.", ""])
def test_a_lightning_module_that_holds_a_gpt2(tmp_path: Path, prefix: str) -> None:
    model = theirs()
    state = {f"{prefix}{name}": weight for name, weight in model.state_dict().items()}
    content = {"state_dict": state, "pytorch-lightning_version": "2.6.0", "epoch": 1, "hyper_parameters": {"lr": 1e-3}}
    torch.save(content, tmp_path / "last.ckpt")
    check(GPT.from_pretrained(tmp_path / "last.ckpt", n_head=3), model)
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    check(GPT.from_pretrained(tmp_path / "bare.pth", n_head=3), model)


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


def test_nobody_is_told_to_run_what_is_in_a_file(tmp_path: Path) -> None:
    torch.save({"wte.weight": torch.ones(2), "config": Path("x")}, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError) as caught:
        GPT.from_pretrained(tmp_path / "ckpt.pt")
    assert "holds other objects than tensors" in str(caught.value)
    assert "weights_only" not in str(caught.value)
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="holds a state_dict, but no GPT-2"):
        GPT.from_pretrained(tmp_path / "other.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds no weights by name"):
        GPT.from_pretrained(tmp_path / "list.pt")

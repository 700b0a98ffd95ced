"""Checkpoints of other programs: the logits are those of the model that was saved, or the file is refused by name."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import GPT2LMHeadModel

from mingpt_lightning import GPT, LanguageModel, UserError
from mingpt_lightning.errors import CheckpointError
from tests.common import Canary
from tests.gpt2_files import State, check, linear, logits, theirs

Notes = pytest.CaptureFixture[str]
SIX = {"n_head": 6}  # not what a GPT-2 of this width would have


def nanogpt(model: GPT2LMHeadModel, wrapper: str = "_orig_mod.", **more: Any) -> dict[str, Any]:
    """What nanoGPT's train.py writes; with torch.compile, its names begin with _orig_mod."""
    config = model.config
    arguments = {"n_layer": 3, "n_head": config.n_head, "n_embd": 48, "block_size": 16, "bias": True, "vocab_size": 60}
    state = {f"{wrapper}{name}": weight for name, weight in linear(model.state_dict()).items()}
    optimizer = {"state": {0: {"step": torch.tensor(9.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]}
    content = {"model": state, "optimizer": optimizer, "model_args": {**arguments, "dropout": 0.2} | more}
    return content | {"iter_num": 9, "best_val_loss": torch.tensor(2.5), "config": {"dataset": "shakespeare_char"}}


def put(folder: Path, content: Any, name: str = "ckpt.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def refusal(path: Path, **options: Any) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(UserError) as caught:
        GPT.from_pretrained(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module._orig_mod.", ""])
def test_a_checkpoint_of_nanogpt(tmp_path: Path, wrapper: str, capsys: Notes) -> None:
    model = theirs(activation_function="gelu", **SIX)
    gpt = GPT.from_pretrained(put(tmp_path, nanogpt(model, wrapper)))
    check(gpt, model)
    assert (gpt.config["activation"], gpt.config["dropout"], gpt.config["bias"]) == ("gelu", 0.2, True)
    assert (
        f"note: {tmp_path / 'ckpt.pt'} is read as the weights of nanoGPT, activation gelu\n" in capsys.readouterr().err
    )
    gpt.save_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()), logits(model))


def test_nanogpt_as_it_was_before_it_took_the_exact_gelu(tmp_path: Path) -> None:
    model = theirs(activation_function="gelu_new")
    content = nanogpt(model)
    check(GPT.from_pretrained(put(tmp_path, content), activation="gelu_tanh"), model)
    del content["model_args"]["bias"]  # as in its first weeks
    check(GPT.from_pretrained(put(tmp_path, content)), model)


def test_nanogpt_without_biases(tmp_path: Path) -> None:
    model = theirs(activation_function="gelu")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
    content = nanogpt(model, bias=False)
    content["model"] = {name: weight for name, weight in content["model"].items() if not name.endswith("bias")}
    gpt = GPT.from_pretrained(put(tmp_path, content))
    check(gpt, model)
    assert gpt.config["bias"] is False
    gpt.save_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()), logits(model))


def test_what_a_fork_of_nanogpt_adds_is_refused(tmp_path: Path) -> None:
    assert "has use_relu=True in its model_args" in refusal(put(tmp_path, nanogpt(theirs(), use_relu=True)))
    check(
        GPT.from_pretrained(put(tmp_path, nanogpt(theirs(activation_function="gelu"), use_relu=False))),
        theirs(activation_function="gelu"),
    )


MASKS = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 16, 16) for layer in range(3)}


@pytest.mark.parametrize("config", [{"n_head": 6, "model_type": None}, {"n_head": None, "model_type": "gpt-nano"}])
def test_a_checkpoint_of_mingpt(tmp_path: Path, config: dict[str, Any], capsys: Notes) -> None:
    model = theirs(tie_word_embeddings=False, n_head=config["n_head"] or 3)
    beside = {"system": {"seed": 1}, "model": {"n_layer": None, "n_embd": None, "vocab_size": None} | config}
    (tmp_path / "config.json").write_text(json.dumps(beside | {"trainer": {"num_workers": 4}}))
    gpt = GPT.from_pretrained(put(tmp_path, linear(model.state_dict()) | MASKS, "model.pt"))
    check(gpt, model)
    assert gpt.head.weight is not gpt.token_embedding.weight
    assert "is read as the weights of minGPT, activation gelu_new" in capsys.readouterr().err


def test_the_number_of_heads_is_never_guessed(tmp_path: Path) -> None:
    model = theirs(n_embd=128, n_head=8)
    path = put(tmp_path, model.state_dict(), "model.pt")
    line = refusal(path)
    assert f"{path} does not say how many heads its attention of 128 channels has (n_head)." in line
    assert "Give n_head=NUMBER, as it was trained. GPT-2 has one for each 64: 2." in line
    check(GPT.from_pretrained(path, n_head=8), model)
    assert "n_embd=128 is not divisible by n_head=7" in refusal(path, n_head=7)
    told = put(tmp_path, nanogpt(theirs()))
    assert "has n_head=3, not 6 (n_head). Leave it out." in refusal(told, n_head=6)
    model.save_pretrained(tmp_path / "folder")
    assert "has activation=gelu_tanh, not relu" in refusal(tmp_path / "folder", activation="relu")


def test_a_config_of_another_model_beside_a_file_is_refused(tmp_path: Path) -> None:
    theirs(n_layer=4).config.save_pretrained(tmp_path)
    path = put(tmp_path, theirs().state_dict(), "model.pt")
    assert f"{tmp_path / 'config.json'} says n_layer=4, and {path} has weights of n_layer=3" in refusal(path)


def test_a_file_of_a_folder_has_its_settings(tmp_path: Path) -> None:
    model = theirs(scale_attn_by_inverse_layer_idx=True, activation_function="relu", **SIX)
    model.save_pretrained(tmp_path)
    check(GPT.from_pretrained(tmp_path / "model.safetensors"), model)
    check(GPT.from_pretrained(put(tmp_path, model.state_dict(), "epoch-3.pt")), model)


class Old(nn.Module):
    """The names of minGPT's GPT as it was in 2020."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_emb, self.pos_emb = nn.Embedding(60, 48), nn.Parameter(torch.zeros(1, 16, 48))
        self.blocks = nn.Sequential(*(nn.Module() for _ in range(3)))
        for block in self.blocks:
            block.ln1, block.ln2, block.attn = nn.LayerNorm(48), nn.LayerNorm(48), nn.Module()
            for name in ("key", "query", "value", "proj"):
                setattr(block.attn, name, nn.Linear(48, 48))
            block.attn.register_buffer("mask", torch.ones(1, 1, 16, 16).tril())
            block.mlp = nn.Sequential(nn.Linear(48, 192), nn.GELU(), nn.Linear(192, 48), nn.Dropout(0.1))
        self.ln_f, self.head = nn.LayerNorm(48), nn.Linear(48, 60, bias=False)


@pytest.mark.parametrize("wrapper", ["", "model."])
def test_a_checkpoint_of_mingpt_of_2020(tmp_path: Path, wrapper: str) -> None:
    model, old = theirs(tie_word_embeddings=False, activation_function="gelu", **SIX), Old()
    body = model.transformer

    def copy(to: nn.Linear | nn.LayerNorm, weight: torch.Tensor, bias: torch.Tensor) -> None:
        to.weight.copy_(weight)
        to.bias.copy_(bias)

    with torch.no_grad():
        old.tok_emb.weight.copy_(body.wte.weight)
        old.pos_emb[0].copy_(body.wpe.weight)
        old.head.weight.copy_(model.lm_head.weight)
        copy(old.ln_f, body.ln_f.weight, body.ln_f.bias)
        for block, other in zip(old.blocks, body.h, strict=True):
            copy(block.ln1, other.ln_1.weight, other.ln_1.bias)
            copy(block.ln2, other.ln_2.weight, other.ln_2.bias)
            weights, biases = other.attn.c_attn.weight.chunk(3, dim=1), other.attn.c_attn.bias.chunk(3)
            for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
                copy(getattr(block.attn, name), weight.T, bias)
            copy(block.attn.proj, other.attn.c_proj.weight.T, other.attn.c_proj.bias)
            copy(block.mlp[0], other.mlp.c_fc.weight.T, other.mlp.c_fc.bias)
            copy(block.mlp[2], other.mlp.c_proj.weight.T, other.mlp.c_proj.bias)
    state = {f"{wrapper}{name}": weight for name, weight in old.state_dict().items()}
    gpt = GPT.from_pretrained(put(tmp_path, state, "model.pt"), n_head=6)
    check(gpt, model)
    del state[f"{wrapper}blocks.1.attn.key.weight"]
    assert "h.1.attn.c_attn.weight is missing" in refusal(put(tmp_path, state, "model.pt"), n_head=6)


@pytest.mark.parametrize("wrapper", ["model.", "gpt.", "net.lm.", ""])
@pytest.mark.parametrize("nested", [True, False])
def test_a_lightning_module_that_holds_a_gpt2(tmp_path: Path, wrapper: str, nested: bool, capsys: Notes) -> None:
    model = theirs(scale_attn_by_inverse_layer_idx=True, **SIX)
    state = {f"{wrapper}{name}": weight for name, weight in model.state_dict().items()}
    settings = model.config.to_diff_dict()
    content = {"state_dict": state | {"criterion.weight": torch.ones(3)}, "pytorch-lightning_version": "2.6.0"}
    content["hyper_parameters"] = {"lr": 1e-3, "config": settings} if nested else {"lr": 1e-3, **settings}
    check(GPT.from_pretrained(put(tmp_path, content, "last.ckpt")), model)
    notes = capsys.readouterr().err
    assert "left out, as no part of the language model: criterion.weight" in notes
    assert (f"begin with '{wrapper}'" in notes) == bool(wrapper)


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "module", None])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_may_be_in_many_places(tmp_path: Path, key: str | None, zipped: bool) -> None:
    model = theirs()
    content = model.state_dict() if key is None else {key: model.state_dict(), "epoch": 3}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    check(GPT.from_pretrained(tmp_path / "a.pth", n_head=3), model)


def test_safetensors_alone(tmp_path: Path) -> None:
    model = theirs()
    save_file({name: weight.clone() for name, weight in model.state_dict().items()}, tmp_path / "a.safetensors")
    check(GPT.from_pretrained(tmp_path / "a.safetensors", n_head=3), model)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda state: state.pop("transformer.h.1.ln_1.weight"), "h.1.ln_1.weight is missing"),
        (lambda state: [state.pop(n) for n in [*state] if ".h.1." in n], "h.1.ln_1.weight is missing; .* and 9 more"),
        (lambda state: state.update({"transformer.wte.weight": torch.ones(3)}), "holds no GPT-2; its weights are "),
        (lambda state: state.clear(), "holds no state_dict"),
        (lambda state: state.update({"transformer.h.0.attn.lora_A": torch.ones(3)}), "lora_A is unknown"),
        (lambda state: state["transformer.ln_f.bias"].fill_(float("nan")), "ln_f.bias holds NaN or infinity"),
    ],
)
def test_weights_that_make_no_gpt2_are_named(tmp_path: Path, change: Callable[[State], Any], expected: str) -> None:
    state = dict(theirs().state_dict())
    change(state)
    with pytest.raises(CheckpointError, match=expected):
        GPT.from_pretrained(put(tmp_path, state), n_head=3)


def test_what_is_ours_is_sent_where_it_is_read(tmp_path: Path) -> None:
    gpt = GPT(60, 16, n_layer=1, n_head=3, n_embd=48)
    assert "doesn't say how it is built" in refusal(put(tmp_path, gpt.state_dict()))
    assert "checkpoint=FILE" in refusal(put(tmp_path, {"mingpt_lightning": {}, "state_dict": gpt.state_dict()}))
    assert LanguageModel(gpt).gpt is gpt


def touch(folder: Path) -> dict[str, Any]:
    return {"wte.weight": Canary(folder / "canary")}


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda folder, path: torch.save(touch(folder), path), "other objects than tensors (getattr)"),
        (lambda folder, path: path.write_bytes(pickle.dumps(touch(folder), 2)), "other objects than tensors"),
        (lambda _, path: torch.save(theirs(), path), "(transformers.models.gpt2.modeling_gpt2.GPT2LMHeadModel)"),
        (lambda _, path: path.write_bytes(pickle.dumps({"a": 1}, 2)), "it is damaged, or none of torch's files"),
        (lambda _, path: path.write_bytes(b"\x00garbage" * 99), "it is damaged, or none of torch's files"),
        (lambda _, path: torch.save([1], path), "holds no state_dict"),
        (lambda _, path: torch.save({"a": torch.ones(2)}, path), "holds no GPT-2; its weights are a"),
    ],
)
def test_nothing_in_a_file_is_run_and_nobody_is_told_to(
    tmp_path: Path, write: Callable[[Path, Path], Any], expected: str
) -> None:
    write(tmp_path, tmp_path / "ckpt.pt")
    line = refusal(tmp_path / "ckpt.pt")
    assert expected in line
    assert "weights_only" not in line
    assert not (tmp_path / "canary").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_program_is_called_one(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "ckpt.pt")
    assert "cannot be read: it is a TorchScript program, not a state_dict" in refusal(tmp_path / "ckpt.pt")

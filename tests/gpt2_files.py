"""Hugging Face's GPT-2 with random weights, its files in every layout, and what must agree with it."""

import json
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from mingpt_lightning import GPT
from mingpt_lightning.errors import CheckpointError

SIZES = {"vocab_size": 61, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}
SPECIAL = {"bos_token_id": None, "eos_token_id": None}  # by default outside of so small a vocabulary
TOKENS = torch.randint(61, (3, 24), generator=torch.Generator().manual_seed(1))
INPUTS = torch.randint(60, (4, 12), generator=torch.Generator().manual_seed(2))
State = dict[str, Tensor]
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


def theirs(**options: Any) -> GPT2LMHeadModel:
    """A reference of other sizes, for files of which the shapes have to tell them."""
    return make_reference(**{"vocab_size": 60, "n_positions": 16, "n_embd": 48, "n_layer": 3, "n_head": 3} | options)


def logits(model: torch.nn.Module) -> Tensor:
    """What a model of transformers computes, without its wrapping."""
    with torch.no_grad():
        return model(INPUTS).logits


def check(gpt: GPT, reference: torch.nn.Module) -> None:
    """Assert equal logits."""
    with torch.no_grad():
        torch.testing.assert_close(gpt(INPUTS), logits(reference), rtol=1e-5, atol=2e-5)


def linear(state: State) -> State:
    """Weights as nanoGPT and minGPT have them: of linear layers, not of Conv1D."""
    return {
        name: weight.T.contiguous() if re.search(r"(c_attn|c_proj|c_fc)\.weight$", name) else weight.clone()
        for name, weight in state.items()
    }


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
    text = reference.generate(
        prompt, attention_mask=mask, max_length=prompt.shape[1] + 20, do_sample=False, pad_token_id=0
    )
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

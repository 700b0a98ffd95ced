"""The peers: GPT-2s of transformers, nanoGPT and minGPT, built from the same sizes and weights, with one interface.

nanoGPT and minGPT come from checkouts: a folder (`--peers`) that holds them under these names. They are imported when
a model is built. A peer's `loss` is the mean over all tokens, its `generate` is greedy.
"""

import contextlib
import importlib.util
import io
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

FILES = {"nanoGPT": "model.py", "minGPT": "mingpt/model.py"}
ADDER = "projects/adder/adder.py"  # of minGPT
CONV1D = ("c_attn.weight", "c_fc.weight", "c_proj.weight")  # which transformers keeps transposed


class Sizes(NamedTuple):
    """The sizes of a model; GPT-2's 124 M parameters unless said otherwise."""

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    vocab_size: int = 50257
    block_size: int = 1024


class Peer(NamedTuple):
    """How a peer is built from (folder of checkouts, sizes), and used as (model, …)."""

    build: Callable[[Path, Sizes], Any]
    loss: Callable[[Any, Tensor, Tensor], Tensor]
    generate: Callable[[Any, Tensor, int], Tensor]


# Checkouts


def find(folder: Path, name: str, file: str) -> Path | None:
    """A file in a peer's checkout; None, with a message, if it is missing."""
    path = (folder / name / file).resolve()
    if not path.is_file():
        print(f"\n{name} is missing: there is no {folder / name / file}", flush=True)
        return None
    return path


def available(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of some names, such as "nanoGPT tuned", whose peer is installed or checked out."""
    names = list(names)
    wanted = {name.split()[0] for name in names}
    missing = {name for name in FILES if name in wanted and find(folder, name, FILES[name]) is None}
    return [name for name in names if name.split()[0] not in missing]


def load(folder: Path, name: str, file: str) -> ModuleType:
    """Import a file of a peer's checkout, whose folder goes onto the path for its own imports."""
    checkout = (folder / name).resolve()
    sys.path.insert(0, str(checkout))
    spec = importlib.util.spec_from_file_location(f"{name}_{Path(file).stem}", checkout / file)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def quiet() -> contextlib.redirect_stdout[io.StringIO]:
    """Hide what a peer prints, such as its number of parameters."""
    return contextlib.redirect_stdout(io.StringIO())


# Models, with random weights and without dropout


def transformers(sizes: Sizes, **more: Any) -> Any:
    """transformers' GPT-2, always with the same weights; `more` goes to its GPT2Config."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    config: dict[str, Any] = sizes._asdict()
    config["n_positions"] = config.pop("block_size")
    config |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None}
    return GPT2LMHeadModel(GPT2Config(**{**config, **more}))


def nanogpt(folder: Path, sizes: Sizes, bias: bool = True) -> Any:
    module = load(folder, "nanoGPT", FILES["nanoGPT"])
    with quiet():
        return module.GPT(module.GPTConfig(**sizes._asdict(), dropout=0.0, bias=bias))


def mingpt(folder: Path, sizes: Sizes) -> Any:
    model = load(folder, "minGPT", FILES["minGPT"]).GPT
    config = model.get_default_config()
    config.merge_from_dict({**sizes._asdict(), "model_type": None})
    config.merge_from_dict({"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0})
    with quiet():
        return model(config)


def transformers_loss(model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    return model(input_ids=inputs, labels=targets, shift_labels=targets).loss


def loss(model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    """minGPT's and nanoGPT's, which return (logits, loss)."""
    return model(inputs, targets)[1]


def transformers_generate(model: Any, prompt: Tensor, new: int) -> Tensor:
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones_like(prompt)
    return model.generate(prompt, attention_mask=mask, min_new_tokens=new, max_new_tokens=new, **options)


PEERS = {
    "transformers": Peer(lambda _, sizes: transformers(sizes), transformers_loss, transformers_generate),
    "nanoGPT": Peer(nanogpt, loss, lambda model, prompt, new: model.generate(prompt, new, top_k=1)),
    "minGPT": Peer(mingpt, loss, lambda model, prompt, new: model.generate(prompt, new, do_sample=False)),
}


# Equal weights


@contextlib.contextmanager
def saved(model: Any) -> Iterator[Path]:
    """A folder that holds a model, transformers' or ours, in the layout of Hugging Face."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        yield Path(folder)


def ours(model: Any) -> Any:
    """Our GPT with the weights of a transformers model."""
    from mingpt_lightning import GPT

    with saved(model) as folder:
        return GPT.from_pretrained(folder)


def fill(peer: nn.Module, model: Any) -> Any:
    """Give minGPT's or nanoGPT's model the weights of another, transformers' or ours, and return it."""
    from safetensors.torch import load_file

    with saved(model) as folder:
        weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    with torch.no_grad():
        for name, weight in peer.state_dict().items():
            if not name.endswith((".attn.bias", ".masked_bias")):  # causal masks
                weight.copy_(weights[name].T if name.endswith(CONV1D) else weights[name])
    return peer


def build(name: str, folder: Path, model: Any) -> Any:
    """A peer with the sizes and weights of a transformers model."""
    if name == "transformers":
        return model
    config = model.config
    sizes = Sizes(config.n_layer, config.n_head, config.n_embd, config.vocab_size, config.n_positions)
    return fill(PEERS[name].build(folder, sizes), model)


def nanogpt_like(gpt: Any, folder: Path) -> Any:
    """nanoGPT's model with the sizes and weights of ours."""
    return fill(nanogpt(folder, Sizes(**{name: gpt.config[name] for name in Sizes._fields})), gpt)

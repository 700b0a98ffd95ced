"""What a checkpoint holds of this library's objects, and the objects made from it again.

No class is ever taken from a file: it is compared with the one that the reader names, and another one is refused.
"""

import inspect
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch

from mingpt_lightning import (
    __version__,
    bpe,  # noqa: F401  # registers BPETokenizer, which a checkpoint may name
)
from mingpt_lightning.adapter import adapter_of, add_lora, fingerprint, is_adapters, merge_adapter
from mingpt_lightning.errors import CheckpointError, UserError
from mingpt_lightning.gpt import GPT
from mingpt_lightning.pretrained import from_pretrained
from mingpt_lightning.storage import KEY, load_checkpoint
from mingpt_lightning.structure import class_name, own_layers
from mingpt_lightning.tokenizer import Tokenizer

System = TypeVar("System", bound=pl.LightningModule)

FORMAT = 2
"""The version of what is under KEY; files of a higher one are refused."""


def is_plain(value: Any) -> bool:
    """Whether a value is plain data, which a checkpoint may hold."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and is_plain(item) for name, item in value.items())
    return all(map(is_plain, value)) if isinstance(value, list) else isinstance(value, str | int | float | None)


def metadata(gpt: GPT, tokenizer: Tokenizer | None, config: dict[str, Any], counters: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds under KEY, without the data. counters: of the LightningModule."""
    return {
        "format": FORMAT,
        "version": __version__,
        "gpt": gpt.config,
        "own_layers": own_layers(gpt),
        **({} if (adapter := adapter_of(gpt)) is None else {"adapter": adapter}),
        "tokenizer": tokenizer and tokenizer.state(),
        "config": config,
        "data": None,
        "environment": {  # what the last bits of a result depend on beside the config
            "torch": str(torch.__version__),
            "pytorch_lightning": pl.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "processor": platform.machine(),
            "threads": str(torch.get_num_threads()),
        },
        **counters,
    }


def restore(content: dict[str, Any], make_gpt: Callable[..., GPT], make: Callable[..., System]) -> System:
    """The system of a checkpoint's content (see `read_checkpoint`), in evaluation mode.

    make_gpt, make: called like the constructors of `GPT` and `LanguageModel`. Raises CheckpointError when they make
    others than the classes that were trained.
    """
    parts, tokens_seen = restore_parts(content, make_gpt)
    system: Any = make(**parts)
    trained = content[KEY].get("system", "mingpt_lightning.language_model.LanguageModel")  # version 0.1.0 had no other
    if trained not in map(class_name, type(system).__mro__):
        what = f"the checkpoint is of the system {trained}, not of {class_name(type(system))}"
        raise CheckpointError(what, "checkpoint", "Read it with its class: CLASS.load_from_checkpoint(…).")
    load_rest(system, content["state_dict"], system.strict_loading)
    system.tokens_seen = tokens_seen
    system.modes = {name: module.training for name, module in system.named_modules()}
    restored: System = system.eval()
    return restored


def restore_parts(content: dict[str, Any], make_gpt: Callable[..., GPT]) -> tuple[dict[str, Any], int]:
    """What a system is made from: the GPT with its weights, tokenizer and config; and the tokens seen in training.

    Raises CheckpointError for another model than was trained, and when the sizes don't fit the weights, before memory
    is allocated for them.
    """
    ours, prefix = content[KEY], "gpt."
    try:
        weights = {name[4:]: value for name, value in content["state_dict"].items() if name.startswith(prefix)}
        if "adapter" in ours:
            gpt = with_adapter(ours["adapter"], ours["gpt"], weights, make_gpt)
            check_model(gpt, ours)
            tokenizer = Tokenizer.from_state(ours["tokenizer"]) if ours["tokenizer"] else None
            return {"gpt": gpt, "tokenizer": tokenizer, "config": dict(ours["config"])}, int(ours["tokens_seen"])
        blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
        shape = tuple(weights["token_embedding.weight"].shape)
        sizes, config = ours["gpt"], dict(ours["config"])
        if (shape, len(blocks)) != ((sizes["vocab_size"], sizes["n_embd"]), sizes["n_layer"]):
            raise RuntimeError
        tokenizer = Tokenizer.from_state(ours["tokenizer"]) if ours["tokenizer"] else None
        given = own_arguments(make_gpt, sizes, config.get("model")) if isinstance(make_gpt, type) else {}
        gpt = make_gpt(**sizes, **given)
        check_model(gpt, ours)
        gpt.load_state_dict(weights)
        return {"gpt": gpt, "tokenizer": tokenizer, "config": config}, int(ours["tokens_seen"])
    except CheckpointError:
        raise
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        what = "the weights do not fit the model in the checkpoint"
        raise CheckpointError(what, "checkpoint", "Use another file of the run.") from error


def with_adapter(
    adapter: dict[str, Any], sizes: dict[str, Any], weights: dict[str, torch.Tensor], make_gpt: Callable[..., GPT]
) -> GPT:
    """The GPT of a checkpoint that holds an adapter alone: its base, read from where it was, and the adapter.

    Raises CheckpointError where the base isn't there any more, or has other weights.
    """
    base = adapter["base"]
    where = base.get("name") or base.get("checkpoint")
    fix = f"Bring {where} back, as it was when the adapter was trained."
    try:
        if base.get("checkpoint"):
            gpt = restore_parts(load_checkpoint(Path(base["checkpoint"])), make_gpt)[0]["gpt"]
            if gpt.block_size != sizes["block_size"]:
                gpt.crop_block_size(sizes["block_size"])
        else:
            same = {name: sizes[name] for name in ("block_size", "dropout", "n_head", "activation")}
            gpt = from_pretrained(where, base.get("revision"), **same)
    except UserError as error:
        what = f"the base of the checkpoint's adapter can't be read: {error.what}"
        raise CheckpointError(what, "checkpoint", fix) from error
    gpt = merge_adapter(gpt)
    if fingerprint(gpt) != base["fingerprint"]:
        what = f"the weights of {where} are not those that the checkpoint's adapter was trained on"
        raise CheckpointError(what, "checkpoint", fix)
    add_lora(gpt, **adapter["settings"], base=base)
    missing, unknown = gpt.load_state_dict(weights, strict=False)
    if unknown or any(map(is_adapters, missing)):
        raise RuntimeError
    return gpt


def check_model(gpt: GPT, ours: dict[str, Any]) -> None:
    """Raise CheckpointError for a model of other classes or sizes than the one that was trained."""
    now = own_layers(gpt)
    before = list(ours.get("own_layers", now))  # version 0.1.0 doesn't say
    if different := sorted({*before} ^ {*now}):
        verb = "has" if different[0] in before else "lacks"
        what = f"the model that was trained {verb} {', '.join(different)}"
        raise CheckpointError(what, "checkpoint", "Read it with its class: load_from_checkpoint(…, gpt=CLASS).")
    for name, value in ours["gpt"].items():
        if name in gpt.config and gpt.config[name] != value:
            what = f"the model that was trained has {name}={value}, the class makes one of {name}={gpt.config[name]}"
            raise CheckpointError(what, "checkpoint", "Read it with the class as it was.")


def own_arguments(cls: type, inherited: Iterable[str], *known: Any, **given: Any) -> dict[str, Any]:
    """The constructor arguments that a class has beside the inherited ones: as given, else as a checkpoint knows them.

    Raises CheckpointError for one that is nowhere, since its default may not be what was trained.
    """
    values = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if name in {*inherited} or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        places = [place for place in (given, *known) if isinstance(place, dict) and name in place]
        if not places:
            what = f"the checkpoint does not say which {name} its {cls.__name__} had"
            fix = f"Give it in Python: {name}=… of {cls.__name__}, or train with it in the config."
            raise CheckpointError(what, "checkpoint", fix)
        values[name] = places[0][name]
    return values


def load_rest(system: torch.nn.Module, state: dict[str, Any], strict: bool) -> None:
    """Load what a LightningModule has beside its GPT. Raises CheckpointError where it has something else."""
    rest = {name: value for name, value in state.items() if not name.startswith("gpt.")}
    try:
        missing, unknown = system.load_state_dict(rest, strict=False)
    except RuntimeError:
        missing, unknown = [], [*rest]
    missing = [name for name in missing if not name.startswith("gpt.")]
    if unknown or (strict and missing):
        names = ", ".join(sorted([*unknown, *missing]))
        what = f"the weights do not fit the {type(system).__name__} in the checkpoint: {names}"
        raise CheckpointError(what, "checkpoint", "Use another file of the run.")

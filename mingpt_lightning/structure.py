"""Whether a model is built as this library builds it: only what is exactly known is fused, packed or exported.

A model may be a class derived from `GPT`, or a GPT some of whose layers were replaced, patched or hooked.
"""

import inspect
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mingpt_lightning.errors import UserError
from mingpt_lightning.gpt import GPT
from mingpt_lightning.layers import Identity, Softcap

DROPOUT = (nn.Dropout, nn.Identity)
"""Make no difference to what a trained model computes."""


def class_name(cls: type) -> str:
    """The full name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def class_of(module: nn.Module) -> type:
    """The class of a module, without the one that torch's `fully_shard` puts before it."""
    return next(cls for cls in type(module).__mro__ if not cls.__module__.startswith("torch.distributed."))


def is_exactly(module: nn.Module, *classes: type[nn.Module]) -> bool:
    """Whether a module computes what one of these classes computes: it isn't derived from it, patched or hooked."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(module) in classes and "forward" not in vars(module) and not hooked


def is_own(gpt: GPT, *methods: str) -> bool:
    """Whether a model has another one of these methods than `GPT` has."""
    return any(getattr(type(gpt), name) is not getattr(GPT, name) or name in vars(gpt) for name in methods)


def has_plain_head(gpt: GPT) -> bool:
    """Whether the logits are a product with the weight of the head, and at most a soft-cap of it."""
    known = is_exactly(gpt.head, nn.Linear) and gpt.head.bias is None and is_exactly(gpt.softcap, Identity, Softcap)
    return known and not is_own(gpt, "logits")


def check_methods(gpt: GPT) -> None:
    """Raise UserError for a model whose own `forward` would be called by neither training nor generation."""
    if is_own(gpt, "forward") and not is_own(gpt, "hidden", "logits"):
        what = f"{type(gpt).__name__} has a forward of its own, and training and generation call hidden and logits"
        raise UserError(what, "model", "Override hidden or logits instead of forward.")


def takes_cache(gpt: GPT) -> bool:
    """Whether the model's `hidden` takes a key/value cache."""
    return not is_own(gpt, "hidden") or len(inspect.signature(gpt.hidden).parameters) > 1


class NoInit(TorchFunctionMode):
    """Skips random initialisation. On the meta device it would make torch import 70 MB of its compiler."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return None if getattr(function, "__name__", "") == "normal_" else function(*args, **kwargs or {})


def without_memory(config: dict[str, Any]) -> GPT:
    """The GPT that these arguments make, with the shapes of its weights, on the meta device. Others are left out."""
    known = inspect.signature(GPT).parameters
    with torch.device("meta"), NoInit():
        return GPT(**{name: value for name, value in config.items() if name in known})


def own_layers(gpt: GPT) -> list[str]:
    """What a model has that `GPT` doesn't make from the same config: classes, with their settings, itself included."""

    def of(module: nn.Module) -> str:
        settings = module.extra_repr()
        return class_name(class_of(module)) + (f"({settings})" if settings else "")

    def known(name: str, module: nn.Module) -> bool:
        like = stock.get(name)
        if type(module) in DROPOUT and type(like) in DROPOUT:
            return True
        return like is not None and of(module) == of(like)

    stock = dict(without_memory(gpt.config).named_modules())
    modules = [(name.replace(".base_layer", ""), module) for name, module in gpt.named_modules()]
    peft = [name for name, module in modules if type(module).__module__.startswith("peft.")]  # an adapter isn't a layer
    own = {
        of(module)
        for name, module in modules
        if not known(name, module)
        and not (type(module).__module__.startswith("peft.") or name.startswith(tuple(f"{p}.lora_" for p in peft)))
    }
    return sorted(own, key=lambda layer: (layer.startswith(("mingpt_lightning.", "torch.")), layer))


def check_exportable(gpt: GPT) -> None:
    """Raise UserError for a model that computes something else than `GPT` makes from the same config.

    An adapter, which can be merged, is no difference.
    """
    own = [layer for layer in own_layers(gpt) if layer != class_name(type(gpt))]
    if is_own(gpt, "forward", "hidden", "logits"):
        own.append(class_name(type(gpt)))
    own += [f"hook of {name or 'GPT'}" for name, module in gpt.named_modules() if not is_exactly(module, type(module))]
    ours, stock = (
        {name.replace(".base_layer", ""): w.shape for name, w in model.named_parameters() if ".lora_" not in name}
        for model in (gpt, without_memory(gpt.config))
    )
    own += [f"parameter {name}" for name, shape in ours.items() if stock.get(name) != shape]
    own += [f"shared {name}" for name in stock if name not in ours]
    if own:
        fix = "Only models with exactly the layers of GPT can be exported."
        raise UserError(f"transformers has no {own[0]}", "model", fix)

"""LoRA through the `peft` package: a pretrained GPT stays as it is, and small matrices beside its own are trained.

Notable: a GPT with an adapter has an attribute `adapter`, plain data from which the same can be made again: its
settings, and where the base is from. A checkpoint holds the adapter's weights only; `fingerprint` tells whether a base
is the one that it was trained on.

Source: Hu et al. 2021, "LoRA"; peft, `inject_adapter_in_model`.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mingpt_lightning import llama
from mingpt_lightning.architectures import CONV1D, architecture_of
from mingpt_lightning.errors import UserError, nearest, require_number, require_positive
from mingpt_lightning.gpt import GPT
from mingpt_lightning.hub import write_file
from mingpt_lightning.weights import to_hf_name

TARGETS = ("qkv", "proj", "fc")
"""The linear layers of a block: queries, keys and values in one; the end of attention and of MLP; the MLP's first."""

SAMPLE = 4096  # numbers of each weight that a fingerprint looks at


def add_lora(
    gpt: GPT,
    *,
    r: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    target_modules: Sequence[str] = TARGETS,
    use_rslora: bool = False,
    base: dict[str, Any] | None = None,
) -> GPT:
    """Add an adapter to a GPT, in place, and freeze all other weights; at first it changes nothing.

    r: the rank of its matrices. alpha: the product of the two is multiplied by alpha / r, or by alpha / sqrt(r) with
    use_rslora. dropout: of their inputs. target_modules: which layers of each block, of TARGETS. base: where the GPT is
    from, plain data for a checkpoint.

    Raises UserError for a GPT that has one, for other layers, and where peft isn't installed.
    """
    require_positive(r=r)
    require_number(alpha=alpha)
    if not 0 <= dropout < 1:
        raise UserError(f"dropout={dropout} is not in [0, 1)", "dropout", "Use 0 or a small rate.")
    for name in target_modules or ["(none)"]:
        if name not in TARGETS:
            raise UserError(f"target_modules has {name}", "target_modules", nearest(str(name), TARGETS))
    if adapter_of(gpt) is not None:
        raise UserError("the model has an adapter already", "adapter", "Merge it first.")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("an adapter needs the package peft", "adapter", "Run pip install peft.") from error
    settings = {"r": r, "alpha": alpha, "dropout": dropout, "target_modules": list(target_modules)}
    known = fingerprint(gpt)
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]  # a fraction works too
        lora_dropout=dropout,
        target_modules=list(target_modules),
        use_rslora=use_rslora,
    )
    inject_adapter_in_model(config, gpt)
    gpt.adapter = {  # type: ignore[assignment]
        "settings": settings | {"use_rslora": use_rslora},
        "base": {**(base or {}), "fingerprint": known},
    }
    return gpt


def adapter_of(gpt: GPT) -> dict[str, Any] | None:
    """How the adapter of a GPT was made; None where it has none."""
    found: dict[str, Any] | None = getattr(gpt, "adapter", None)
    return found


def has_adapter_dropout(gpt: GPT) -> bool:
    """Whether training draws random numbers for an adapter."""
    found = adapter_of(gpt)
    return found is not None and found["settings"]["dropout"] > 0


def is_adapters(name: str) -> bool:
    """Whether a weight is an adapter's, by its name."""
    return ".lora_" in name


def merge_adapter(gpt: GPT) -> GPT:
    """Add an adapter to the weights that it stands beside, in place; what remains is a GPT like any other."""
    if adapter_of(gpt) is None:
        return gpt
    from peft.tuners.lora import LoraLayer

    for name, layer in [*gpt.named_modules()]:
        if isinstance(layer, LoraLayer):
            layer.merge(safe_merge=True)
            parent, _, own = name.rpartition(".")
            setattr(gpt.get_submodule(parent), own, layer.get_base_layer())
    del gpt.adapter, gpt.peft_config
    return gpt.requires_grad_()


def fingerprint(gpt: GPT) -> str:
    """A hash of the weights of a GPT without adapter: of up to SAMPLE numbers spread over each."""
    digest = hashlib.sha256()
    for name, weight in gpt.named_parameters():
        sample = weight.detach().flatten()[:: max(1, weight.numel() // SAMPLE)]
        digest.update(f"{name} {list(weight.shape)}".encode() + sample.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_adapter(gpt: GPT, folder: str | Path) -> None:
    """Write an adapter in peft's format, for the base in Hugging Face's layout: `PeftModel.from_pretrained` reads it.

    Raises ResourceError when the folder cannot be written, UserError for a GPT without one or that transformers lacks.
    """
    found = adapter_of(gpt)
    if found is None:
        raise UserError("the model has no adapter", "adapter", "Save it by save_pretrained.")
    from peft import LoraConfig

    linear = architecture_of(gpt) not in CONV1D
    weights: dict[str, torch.Tensor] = {}
    for name, _ in gpt.named_modules():
        if name.endswith(".lora_A"):
            whole = to_hf_name(f"{name.removesuffix('.lora_A')}.weight")
            A, B = (next(gpt.get_submodule(name[:-1] + side).parameters()).detach() for side in "AB")
            pieces = llama.under_llama_names([(whole, B)], gpt.config) if linear else [(f"transformer.{whole}", B)]
            for theirs, rows in pieces:
                place = f"base_model.model.{theirs.removesuffix('.weight')}"
                weights |= {f"{place}.lora_A.weight": A.clone(), f"{place}.lora_B.weight": rows.clone()}
    settings, base = found["settings"], found["base"]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base.get("name"),
        revision=base.get("revision"),
        r=settings["r"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        use_rslora=settings["use_rslora"],
        target_modules=sorted({name.split(".")[-3] for name in weights}),
        fan_in_fan_out=not linear,
        inference_mode=True,
    ).to_dict()
    write_file(Path(folder) / "adapter_model.safetensors", weights)
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    write_file(Path(folder) / "adapter_config.json", plain)

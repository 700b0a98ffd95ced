"""task=export: a folder that transformers and `GPT.from_pretrained` load."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig

from mingpt_lightning.adapter import save_adapter
from mingpt_lightning.bpe import read_tokenizer
from mingpt_lightning.checkpoint import is_own
from mingpt_lightning.cli.restore import is_pretrained, named_checkpoint, read_named, read_pretrained, rebuild
from mingpt_lightning.console import console
from mingpt_lightning.errors import ResourceError, UserError, nearest
from mingpt_lightning.gguf_file import is_gguf
from mingpt_lightning.gpt import GPT
from mingpt_lightning.hub import is_hub_id
from mingpt_lightning.imagegpt import COLOURS
from mingpt_lightning.pretrained import from_pretrained
from mingpt_lightning.storage import KEY
from mingpt_lightning.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
OPENAI = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


def run_task(cfg: DictConfig, started: float) -> None:
    """Write the model that the command line names, with its tokenizer, in Hugging Face's layout."""
    if cfg.output is None:
        raise UserError("task=export needs a folder to write", "output", "Give output=FOLDER.")
    folder = Path(cfg.output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder", "output", "Choose another output=.")
    try:
        what = export(cfg, folder)
    except ResourceError as error:
        if error.where == "folder":
            raise ResourceError(error.what, "output", "Choose another output=.") from error
        raise
    console.print(f"exported    {folder}, {what}", markup=False)
    console.print(f"upload      hf upload USER/NAME {folder}, or task=push repo=USER/NAME instead", markup=False)


def export(cfg: DictConfig, folder: Path, **facts: Any) -> str:
    """Write a folder with the model that the command line names; returns a few words on what it holds.

    facts: for its card, beside what is known of the model.
    """
    if cfg.dtype not in ("auto", *DTYPES):
        raise UserError(f"dtype={cfg.dtype} is not possible", "dtype", nearest(str(cfg.dtype), ["auto", *DTYPES]))
    gpt, tokenizer, known = read_model(cfg)
    if tokenizer is not None and tokenizer.vocab_size > gpt.config["vocab_size"]:
        what = f"the tokenizer has {tokenizer.vocab_size} tokens, and the model {gpt.config['vocab_size']}"
        raise UserError(what, "tokenizer", "Give the tokenizer that it was trained with.")
    if cfg.dtype != "auto":
        gpt = gpt.to(DTYPES[cfg.dtype])
    if cfg.license is not None:
        facts["license"] = str(cfg.license)
    if not cfg.get("merge", True):
        save_adapter(gpt, folder)
        return "an adapter in peft's format"
    gpt.save_pretrained(folder, tokenizer, **known | facts)
    dtype = str(gpt.head.weight.dtype).removeprefix("torch.")
    if (folder / COLOURS).exists():
        return f"{dtype}, with its colours"
    lacks = tokenizer is None or tokenizer.hugging_face() is None
    why = "tokenizer= gives it one" if tokenizer is None else "transformers has none for this notation"
    return f"{dtype}{f', without a tokenizer: {why}' * lacks}"


def read_model(cfg: DictConfig) -> tuple[GPT, Tokenizer | None, dict[str, Any]]:
    """The model that the command line names, in the dtype that it has, its tokenizer or a given one, and `Facts`."""
    given = None if cfg.tokenizer is None else read_tokenizer(cfg.tokenizer)
    if cfg.checkpoint is not None and not is_own(file := named_checkpoint(cfg.checkpoint)):
        try:
            gpt = from_pretrained(file, dtype=None)
            return gpt, given or (read_tokenizer(file) if is_gguf(file) else None), {}
        except UserError as error:
            if error.where == "n_head":
                error.fix = error.fix.replace("Give ", f"Use model=gpt2-pretrained model.name={file} model.")
            error.where = "checkpoint"
            raise
    if cfg.checkpoint is None and is_pretrained(cfg.model):
        return *read_pretrained(cfg, given, dtype=None), facts_of_pretrained(cfg.model.name)
    path, content = read_named(cfg)
    system = rebuild(content)
    return system.gpt, given or system.tokenizer, facts_of_run(path, content[KEY]["config"])


def facts_of_run(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What is known of a checkpoint: its dataset, what it began with, and what its run found about this very file."""
    model = config.get("model", {})
    began = str(model.get("_target_")).endswith(".from_pretrained")  # a class of one's own may have another name=
    facts = facts_of_pretrained(str(model.get("name", "")) if began else "")
    facts["dataset"] = config.get("choices", {}).get("datamodule")
    metrics: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError, KeyError):
        found = json.loads((path.parent.parent / "summary.json").read_text(encoding="utf-8"))
        if path.parent.name == "checkpoints" and Path(found["checkpoint"]).name == path.name:
            metrics = found["metrics"]
    facts["metrics"] = {
        name: value
        for name, value in metrics.items()
        if name.startswith(("val/", "test/")) and isinstance(value, int | float) and math.isfinite(value)
    }
    return facts


def facts_of_pretrained(name: str) -> dict[str, Any]:
    """The hub id of a pretrained model and its license; of a folder, those that its model card gives."""
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        from huggingface_hub import ModelCard

        with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
            data = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data
            return {key: data.get(key) for key in ("license", "base_model") if isinstance(data.get(key), str)}
    if not name or folder.exists() or not is_hub_id(name):
        return {}
    openai = name.removeprefix("openai-community/") in OPENAI
    return {"base_model": f"openai-community/{name}" if name in OPENAI else name, "license": "mit" if openai else None}

"""task=export: a folder that transformers and `GPT.from_pretrained` load."""

from pathlib import Path

import torch
from omegaconf import DictConfig

from mingpt_lightning.bpe import read_tokenizer
from mingpt_lightning.checkpoint import is_own
from mingpt_lightning.cli.restore import is_pretrained, named_checkpoint, read_pretrained, read_system
from mingpt_lightning.console import console
from mingpt_lightning.errors import ResourceError, UserError, nearest
from mingpt_lightning.gpt import GPT
from mingpt_lightning.pretrained import from_pretrained
from mingpt_lightning.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def run_task(cfg: DictConfig, started: float) -> None:
    """Write the model that the command line names, with its tokenizer, in Hugging Face's layout."""
    if cfg.output is None:
        raise UserError("task=export needs a folder to write", "output", "Give output=FOLDER.")
    folder = Path(cfg.output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder", "output", "Choose another output=.")
    if cfg.dtype not in ("auto", *DTYPES):
        raise UserError(f"dtype={cfg.dtype} is not possible", "dtype", nearest(str(cfg.dtype), ["auto", *DTYPES]))
    gpt, tokenizer = read_model(cfg)
    if tokenizer is not None and tokenizer.vocab_size > gpt.config["vocab_size"]:
        what = f"the tokenizer has {tokenizer.vocab_size} tokens, and the model {gpt.config['vocab_size']}"
        raise UserError(what, "tokenizer", "Give the tokenizer that it was trained with.")
    if cfg.dtype != "auto":
        gpt = gpt.to(DTYPES[cfg.dtype])
    try:
        gpt.save_pretrained(folder, tokenizer)
    except ResourceError as error:
        raise ResourceError(error.what, "output", "Choose another output=.") from error
    why = "tokenizer= gives it one" if tokenizer is None else "transformers has none for this notation"
    lacks = tokenizer is None or tokenizer.hugging_face() is None
    dtype = str(gpt.head.weight.dtype).removeprefix("torch.")
    console.print(f"exported    {folder}, {dtype}{f', without a tokenizer: {why}' * lacks}", markup=False)


def read_model(cfg: DictConfig) -> tuple[GPT, Tokenizer | None]:
    """The model that the command line names, in the dtype that it has, and its tokenizer, or the one that is given."""
    given = None if cfg.tokenizer is None else read_tokenizer(cfg.tokenizer)
    if cfg.checkpoint is not None and not is_own(file := named_checkpoint(cfg.checkpoint)):
        try:
            return from_pretrained(file, dtype=None), given
        except UserError as error:
            if error.where == "n_head":
                error.fix = error.fix.replace("Give ", f"Use model=gpt2-pretrained model.name={file} model.")
            error.where = "checkpoint"
            raise
    if cfg.checkpoint is None and is_pretrained(cfg.model):
        return read_pretrained(cfg, given, dtype=None)
    system = read_system(cfg)
    return system.gpt, given or system.tokenizer

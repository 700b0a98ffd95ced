"""task=export: a folder that transformers and `GPT.from_pretrained` load."""

from pathlib import Path

from omegaconf import DictConfig

from mingpt_lightning.cli.restore import read_system
from mingpt_lightning.console import console
from mingpt_lightning.errors import ResourceError, UserError


def run_task(cfg: DictConfig, started: float) -> None:
    """Write the model that the command line names, with its tokenizer, in Hugging Face's layout."""
    if cfg.output is None:
        raise UserError("task=export needs a folder to write", "output", "Give output=FOLDER.")
    folder = Path(cfg.output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder", "output", "Choose another output=.")
    system = read_system(cfg)
    try:
        system.gpt.save_pretrained(folder, system.tokenizer)
    except ResourceError as error:
        raise ResourceError(error.what, "output", "Choose another output=.") from error
    lacks = system.tokenizer is None or system.tokenizer.hugging_face() is None
    note = ", without a tokenizer: transformers has none for this notation" if lacks else ""
    console.print(f"exported    {folder}{note}", markup=False)

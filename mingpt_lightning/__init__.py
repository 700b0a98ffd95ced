"""A small, clean GPT library on PyTorch Lightning and Hydra.

The public names are imported when they are first used, so that `import mingpt_lightning` costs nothing.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mingpt_lightning.finder import ProjectsFinder

if TYPE_CHECKING:
    from mingpt_lightning.bpe import BPETokenizer
    from mingpt_lightning.datamodule import SequenceDataModule
    from mingpt_lightning.errors import UserError
    from mingpt_lightning.gpt import GPT
    from mingpt_lightning.language_model import LanguageModel
    from mingpt_lightning.tokenizer import CharTokenizer, Tokenizer

__all__ = ["GPT", "BPETokenizer", "CharTokenizer", "LanguageModel", "SequenceDataModule", "Tokenizer", "UserError"]

__version__ = "0.1.0"

sys.meta_path.append(ProjectsFinder())

_MODULES = {
    "GPT": "gpt",
    "BPETokenizer": "bpe",
    "CharTokenizer": "tokenizer",
    "LanguageModel": "language_model",
    "SequenceDataModule": "datamodule",
    "Tokenizer": "tokenizer",
    "UserError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

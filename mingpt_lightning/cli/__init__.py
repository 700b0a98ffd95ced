"""The program: Hydra composes a config, a task runs. The library below it knows nothing of configs."""

from mingpt_lightning.cli.main import main
from mingpt_lightning.cli.sweep import SweepTable

__all__ = ["SweepTable", "main"]

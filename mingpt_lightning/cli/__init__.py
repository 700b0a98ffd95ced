"""The program: Hydra composes a config, a task runs. The library below it knows nothing of configs."""

from mingpt_lightning.cli.sweep import SweepTable

__all__ = ["SweepTable"]  # where configs of version 0.1 have it

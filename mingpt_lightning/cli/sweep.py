"""What Hydra calls around the jobs of a sweep: `sweep.csv`, a table of them all, which is printed too."""

import csv
import os
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from mingpt_lightning.errors import UserError

FAILED: dict[int, UserError] = {}
"""The jobs of the running sweep that ended in a user's mistake; the others go on."""


class SweepTable(Callback):
    """Writes a table of a sweep's jobs, `sweep.csv`, and prints it."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if job_return.hydra_cfg is None or job_return.hydra_cfg.hydra.mode != RunMode.MULTIRUN:
            return
        number = job_return.hydra_cfg.hydra.job.num
        result = f"failed: {FAILED[number]}" if number in FAILED else job_return._return_value
        overrides = {key: value for key, _, value in (item.partition("=") for item in job_return.overrides or [])}
        folder = os.path.relpath(job_return.hydra_cfg.hydra.runtime.output_dir)
        self.rows.append({"job": number, **overrides, str(config.optimized_metric): result, "run_dir": folder})

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        from rich.table import Table

        from mingpt_lightning.console import console

        if not self.rows:
            return
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        file = Path(config.hydra.sweep.dir) / "sweep.csv"
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows(self.rows)
        table = Table(*names)
        for row in self.rows:
            values = [row.get(name, "") for name in names]
            table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in values))
        console.print(table)
        console.print(f"sweep folder  {file.parent}", markup=False)

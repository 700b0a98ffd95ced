"""What Hydra calls around the jobs of a sweep: `sweep.csv`, a table of them all, which is printed too.

A launcher may run jobs in other processes or on other machines, so each leaves its row in the folder of the sweep.
"""

import csv
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from mingpt_lightning.files import write_text


class Failure(NamedTuple):
    """A user's mistake that ended a job: its exit code, and what was said."""

    code: int
    text: str


FAILED: dict[int, Failure] = {}
"""The jobs of the running sweep that failed; the others go on."""


class SweepTable(Callback):
    """Writes a table of a sweep's jobs, `sweep.csv`, and prints what differs between them.

    folder: of the sweep, absolute. This object is sent to where the jobs are.
    """

    def __init__(self) -> None:
        self.folder: str | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self.folder = os.path.abspath(config.hydra.sweep.dir)
        for file in rows_in(self.folder):  # of a sweep that was killed
            file.unlink()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if self.folder is None or job_return.hydra_cfg is None:
            return
        number = job_return.hydra_cfg.hydra.job.num
        failure = FAILED.get(number)
        metric, result = str(config.optimized_metric), job_return._return_value
        overrides = {key: value for key, _, value in (item.partition("=") for item in job_return.overrides or [])}
        folder = os.path.relpath(job_return.hydra_cfg.hydra.runtime.output_dir)
        row = {"job": number, **overrides, metric: f"failed: {failure.text}" if failure else result, "run_dir": folder}
        write_text(Path(self.folder, f".job-{number}.json"), json.dumps([row, metric, failure]))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        rows, metrics = list[dict[str, Any]](), dict[str, None]()
        for file in rows_in(self.folder or ""):
            row, metric, failure = json.loads(file.read_text(encoding="utf-8"))
            rows.append(row)
            metrics[metric] = None
            if failure is not None:
                FAILED[row["job"]] = Failure(*failure)
            file.unlink()
        if rows:
            names = list(dict.fromkeys(name for row in rows for name in row))
            with Path(config.hydra.sweep.dir, "sweep.csv").open("w", newline="") as stream:
                writer = csv.DictWriter(stream, names)
                writer.writeheader()
                writer.writerows(rows)
            show(rows, names, [*metrics], Path(config.hydra.sweep.dir))


def rows_in(folder: str) -> list[Path]:
    """The files that the jobs of a sweep left, in the order of the jobs."""
    return sorted(Path(folder).glob(".job-*.json"), key=lambda file: int(file.stem.rpartition("-")[2]))


def show(rows: list[dict[str, Any]], names: list[str], metrics: list[str], folder: Path) -> None:
    """Print a table of what differs between jobs, and what was the same for all."""
    from rich.table import Table

    from mingpt_lightning.console import console

    def differs(name: str) -> bool:
        return len({str(row.get(name)) for row in rows}) > 1

    in_order = all(Path(row["run_dir"]) == Path(os.path.relpath(folder), str(row["job"])) for row in rows)
    settings = [name for name in names if name not in ("job", "run_dir", *metrics)]
    shown = ["job", *filter(differs, settings), *metrics, *(["run_dir"] if not in_order else [])]
    table = Table()
    for name in shown:
        table.add_column(name, overflow="fold")
    for row in rows:
        values = ["failed" if row["job"] in FAILED and name in metrics else row.get(name, "") for name in shown]
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in values))
    console.print(table)
    if same := [f"{name}={rows[0][name]}" for name in settings if not differs(name)]:
        console.print(f"all jobs      {' '.join(same)}", markup=False)
    for number, failure in FAILED.items():
        console.print(f"job {number} failed  {failure.text}", markup=False)
    console.print(f"sweep folder  {folder}", markup=False)

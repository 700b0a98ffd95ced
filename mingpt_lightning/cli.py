"""The command line: Hydra composes a config, a task runs, and a mistake ends in one line.

Nothing heavy is imported before the config is known to be good.
"""

import csv
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mingpt_lightning.config import CONFIG_DIR, check, explain
from mingpt_lightning.errors import UserError

TEXT_KEYS = ("prompt", "checkpoint", "output", "run_dir", "datamodule.path")
"""Keys whose values are taken as typed, whatever commas, quotes or equals signs they have."""


def main() -> None:
    """The entry point of `main.py` and of the console script."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of being shortened
    overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    if not any(argument in ("-m", "--multirun") for argument in sys.argv):
        sys.argv[1:] = [quoted(argument) for argument in sys.argv[1:]]
    try:
        run()
    except UserError as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (hydra.errors.HydraException, OSError) as error:
        fail(explain(error, overrides))


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="config")
def run(cfg: DictConfig) -> float | None:
    """Run the task of a composed config; returns what a sweep compares."""
    try:
        check(cfg)
        from mingpt_lightning.tasks import TASKS

        return TASKS[cfg.task](cfg)
    except UserError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # the other jobs of the sweep go on
        fail(error)


def fail(error: UserError) -> Any:
    """Say it in one line and leave with the code of the error."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(error.code)


def quoted(argument: str) -> str:
    """An override of one of TEXT_KEYS in Hydra's quotes, anything else as it is."""
    key, equals, value = argument.partition("=")
    if not equals or key not in TEXT_KEYS or value in ("", "null") or re.fullmatch(r"(['\"]).*\1", value):
        return argument
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value).replace("${", "\\${")
    return f"{key}='{escaped}'"


class SweepTable(Callback):
    """Writes a table of a sweep's jobs, `sweep.csv`, and prints it."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if job_return.hydra_cfg is None or job_return.hydra_cfg.hydra.mode != RunMode.MULTIRUN:
            return
        number = job_return.hydra_cfg.hydra.job.num
        overrides = dict(item.split("=", 1) for item in job_return.overrides or [])
        result = job_return._return_value
        failed = isinstance(result, BaseException)
        self.rows.append(
            {
                "job": number,
                **overrides,
                str(config.optimized_metric): f"failed: {result}" if failed else result,
            }
        )

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        if not self.rows:
            return
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        file = Path(config.hydra.sweep.dir) / "sweep.csv"
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows(self.rows)
        texts = [names] + [
            [f"{row.get(n):.4f}" if isinstance(row.get(n), float) else str(row.get(n, "")) for n in names]
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
        for line in texts:
            print("  ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)), file=sys.stderr)
        print(f"sweep folder  {file.parent}", file=sys.stderr)

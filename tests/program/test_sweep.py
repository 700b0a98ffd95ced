"""Sweeps: a folder for each job and one table."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from tests.common import ROOT, TINY, Cli, summary


def test_sweep_gives_each_job_a_folder_and_writes_a_table(cli):
    code, _, _ = cli("-m", "run_dir=sweep", "optimizer.lr=1e-3,1e-2", "seed=0,1", "logger=none", *TINY)
    assert code == 0
    with open("sweep/sweep.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["optimizer.lr"] for row in rows] == ["0.001", "0.001", "0.01", "0.01"]
    for row in rows:
        assert float(row["val/loss"]) == pytest.approx(summary(f"sweep/{row['job']}")["metrics"]["val/loss"])
    assert len({row["val/loss"] for row in rows}) == 4


def test_the_table_of_a_sweep_says_where_each_job_is(cli):
    assert cli("-m", "datamodule=adder,sort", *TINY)[0] == 0
    (table,) = Path("runs").glob("*/*/sweep.csv")
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [Path(row["run_dir"]).parts[1] for row in rows] == ["adder", "sort"]
    assert all(Path(row["run_dir"], "summary.json").exists() for row in rows)


def columns(err: str) -> list[str]:
    """The titles of the table that a sweep prints."""
    title = next(line for line in err.splitlines() if line.startswith("┃ job"))
    return [name.strip() for name in title.strip("┃").split("┃")]


def test_the_table_shows_what_differs_and_the_line_below_it_what_does_not(cli: Cli) -> None:
    code, _, err = cli("-m", "run_dir=sweep", "optimizer.lr=1e-3,1e-2", "seed=0,1", "logger=none", *TINY)
    assert code == 0
    assert columns(err) == ["job", "optimizer.lr", "seed", "val/loss"]
    assert f"all jobs      logger=none {' '.join(TINY)}\n" in err
    assert max(len(line) for line in err.splitlines() if line[:1] in "┏┃┡│└") <= 80
    assert not list(Path("sweep").glob(".*")), "nothing is left of what the jobs said"
    code, _, err = cli("-m", "datamodule=adder,sort", *TINY)
    assert code == 0
    assert columns(err) == ["job", "datamodule", "val/loss", "run_dir"], "each job has a folder elsewhere"


JOBLIB = pytest.param(("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), id="joblib", marks=pytest.mark.slow)


@pytest.mark.parametrize("launcher", [(), JOBLIB])
def test_a_failed_job_is_in_the_table_and_in_the_exit_code(cli: Cli, tmp_path: Path, launcher: tuple[str, ...]) -> None:
    jobs = ("-m", "run_dir=sweep", *TINY[2:], "model.n_layer=1", "model.n_head=3,2", *launcher)
    if launcher:
        command = [sys.executable, str(ROOT / "main.py"), *jobs]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)
        code, err = run.returncode, run.stderr
    else:
        code, _, err = cli(*jobs)
    assert code == 2, err
    assert "Traceback" not in err
    assert columns(err) == ["job", "model.n_head", "val/loss"]
    text = "n_embd=16 is not divisible by n_head=3 (model.n_embd)"
    assert f"error: {text}" in err
    assert f"job 0 failed  {text}" in err
    with open("sweep/sweep.csv") as stream:
        first, second = csv.DictReader(stream)
    assert first["val/loss"].startswith(f"failed: {text}")
    assert float(second["val/loss"]) == pytest.approx(summary("sweep/1")["metrics"]["val/loss"])

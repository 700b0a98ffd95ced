"""Sweeps: a folder for each job and one table."""

import csv
from pathlib import Path

import pytest

from tests.common import TINY, summary


def test_sweep_gives_each_job_a_folder_and_writes_a_table(cli):
    code, _, err = cli("-m", "run_dir=sweep", "optimizer.lr=1e-3,1e-2", "seed=0,1", "logger=none", *TINY)
    assert code == 0
    with open("sweep/sweep.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["optimizer.lr"] for row in rows] == ["0.001", "0.001", "0.01", "0.01"]
    for row in rows:
        assert float(row["val/loss"]) == pytest.approx(summary(f"sweep/{row['job']}")["metrics"]["val/loss"])
    assert len({row["val/loss"] for row in rows}) == 4
    assert "sweep.csv" in err or "val/loss" in err


def test_the_table_of_a_sweep_says_where_each_job_is(cli):
    assert cli("-m", "datamodule=adder,sort", *TINY)[0] == 0
    (table,) = Path("runs").glob("*/*/sweep.csv")
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [Path(row["run_dir"]).parts[1] for row in rows] == ["adder", "sort"]
    assert all(Path(row["run_dir"], "summary.json").exists() for row in rows)


def test_a_failed_job_does_not_stop_the_sweep(cli):
    code, _, err = cli("-m", "run_dir=sweep", *TINY[2:], "model.n_layer=1", "model.n_head=3,2")
    assert code == 2
    assert "not divisible" in err
    with open("sweep/sweep.csv") as stream:
        first, second = csv.DictReader(stream)
    assert first["val/loss"].startswith("failed")
    assert float(second["val/loss"])

"""Trainings in several CPU processes; `benchmarks/processes.py` has the cases, and many more of them."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import processes
from benchmarks.processes import RUN, TORCHRUN, TWO, Training, verdict
from benchmarks.reliability.runs import state
from mingpt_lightning.cli.processes import accumulation, placed
from mingpt_lightning.device import peak_flops
from mingpt_lightning.errors import UserError
from tests.common import ROOT, SMALL, Cli, log_of

TORCHELASTIC = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "3", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "a"}
SLURM = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}
KINDS = [
    *("killed", pytest.param("frozen", marks=pytest.mark.slow), pytest.param("impatient", marks=pytest.mark.slow)),
    *(pytest.param("restarted", marks=pytest.mark.slow), pytest.param("late", marks=pytest.mark.slow)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of cases that share an uninterrupted run."""
    return tmp_path_factory.mktemp("processes")


@pytest.mark.parametrize("kind", KINDS)
def test_what_becomes_of_a_training_that_is_disturbed(kind: str, folder: Path) -> None:
    function, _ = processes.CASES[kind]
    assert function(folder, 1) == ""


@pytest.mark.parametrize(
    ("number", "rank"),
    [(signal.SIGTERM, 1), pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow)],
)
def test_a_signal_to_one_rank_stops_and_saves_all(tmp_path: Path, number: int, rank: int) -> None:
    training = Training(tmp_path, *TWO, "trainer.max_steps=100000")
    assert training.wait_for(training.saved)
    os.kill(training.ranks()[rank], number)
    assert verdict(training, (128 + number if number == signal.SIGINT else 143,), "is saved", 30) == ""
    content = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    result = json.loads((tmp_path / "run/summary.json").read_text())
    assert content["global_step"] == result["steps"] > 0
    assert not list((tmp_path / "run").glob("*.log"))


@pytest.mark.slow
def test_a_rank_that_is_killed_while_they_look_for_each_other(tmp_path: Path) -> None:
    training = Training(tmp_path, *TWO)
    assert training.wait_for(lambda: len(training.ranks()) == 2)
    os.kill(training.ranks()[1], signal.SIGKILL)
    code, output, left = training.end()
    assert (code, left) == (1, [])
    assert output.count("rank 1 was killed by SIGKILL") == 1


BAD = """
import pytorch_lightning as pl
from mingpt_lightning import UserError


class Bad(pl.Callback):
    def __init__(self, kind):
        self.kind = kind

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 4 and trainer.global_rank == 1:
            raise UserError("no room", "disk", "Free some.") if self.kind == "mistake" else ValueError("a bug")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "expected", "line"),
    [
        ("mistake", 2, "error: rank 1: no room (disk). Free some."),
        ("bug", 1, "ended with exit code 1. See run/rank-1.log."),
    ],
)
def test_an_error_of_one_rank_ends_all(tmp_path: Path, kind: str, expected: int, line: str) -> None:
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "bad.py").write_text(BAD)
    trust = {"PYTHONPATH": f"{tmp_path}", "MINGPT_LIGHTNING_TRUST": "mylab"}
    bad = f"+callbacks.bad={{_target_: mylab.bad.Bad, kind: {kind}}}"
    code, output, left = Training(tmp_path, *TWO, bad, **trust).end(60)
    assert (code, left) == (expected, []), output
    assert output.splitlines()[-1].endswith(line)
    assert "Traceback" not in output
    assert ("ValueError: a bug" in (tmp_path / "run/rank-1.log").read_text()) == (kind == "bug")


def test_torchrun_sets_the_processes_and_all_use_the_folder_of_rank_0(tmp_path: Path) -> None:
    arguments = [item for item in RUN if not item.startswith("run_dir")]
    command = [*TORCHRUN, "--standalone", "--nproc-per-node=2"]
    code, output, _ = Training(tmp_path, *arguments, "trainer.max_steps=4", command=command).end(120)
    assert code == 0, output
    assert len(list(tmp_path.glob("runs/*/*"))) == 1
    assert "(192 tokens, 2 processes of 8, 2 batches accumulated)" in output
    assert output.count("run folder") == 2  # of rank 0: before and after


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistake", "text"),
    [
        ("trainer.devices=1", "trainer.devices=1, and torchrun has started 2 on each node"),
        ("optimizer.lr=-1", "optimizer.lr=-1 is out of range"),
        ("-m", "each of which would run the whole sweep"),
    ],
)
def test_a_mistake_under_torchrun_is_said_once(tmp_path: Path, mistake: str, text: str) -> None:
    command = [*TORCHRUN, "--standalone", "--nproc-per-node=2"]
    code, output, _ = Training(tmp_path, mistake, *RUN, command=command).end(120)
    assert code
    assert output.count(text) == (2 if mistake == "-m" else 1), output  # of a command line, before anything is shared
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_each_job_of_a_sweep_has_its_own_processes(tmp_path: Path) -> None:
    jobs = ("-m", "seed=0,1", "trainer.strategy=ddp", "trainer.max_steps=2", "run_dir=sweep")
    training = Training(tmp_path, *TWO, *jobs)
    code, output, left = training.end(150)
    assert (code, left) == (0, []), output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output.txt", "sweep"]
    assert output.count("2 processes of 8") == 2
    first, second = (state(tmp_path / "sweep" / job) for job in "01")
    assert first != second


@pytest.mark.slow
def test_each_job_of_joblibs_launcher_has_its_own_processes(tmp_path: Path) -> None:
    jobs = (
        "-m",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=1",
        "seed=0,1",
        "trainer.max_steps=2",
        "run_dir=sweep",
    )
    code, output, left = Training(tmp_path, *TWO, *jobs).end(200)
    assert (code, left) == (0, []), output
    for job in "01":
        result = json.loads((tmp_path / "sweep" / job / "summary.json").read_text())
        assert result["tokens"] == 2 * 2 * 2 * 8 * 6  # steps, batches, processes, sequences, tokens


@pytest.mark.slow
def test_srun_and_its_number_of_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    tasks = []
    for rank in ("1", "0"):
        env = {**SLURM, **place, "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": "0"}
        arguments = [item for item in RUN if not item.startswith("run_dir")]
        tasks.append(Training(tmp_path, *arguments, "trainer.max_steps=4", name=f"task-{rank}", **env))
    ended = [task.end(120) for task in tasks]
    assert [code for code, *_ in ended] == [0, 0], ended
    assert len(list(tmp_path.glob("runs/*/slurm-1-*"))) == 1
    assert ended[0][1] == ""  # rank 1 says nothing


def test_slurm_tasks_without_srun_are_told_what_to_type(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = cli(*SMALL)
    assert code == 2
    assert "Type: srun python main.py" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({}, None),
        ({"WORLD_SIZE": "1", "RANK": "0"}, None),
        (TORCHELASTIC, ("torchrun", 3, 1, 4, 2)),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, ("the environment", 1, 1, 2, 2)),
        (SLURM, ("srun", 1, 1, 2, 2)),
        ({**SLURM, "SLURM_JOB_NAME": "interactive"}, None),
    ],
)
def test_the_place_of_a_process(env: dict[str, str], place: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert placed() == place


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_RANK isn't"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, "Install mpi4py"),
        ({"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a"}, "LOCAL_RANK isn't"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two is not a number"),
        ({"SLURM_NTASKS": "-2"}, "SLURM_NTASKS=-2 is not a number"),
        ({"NODE_RANK": "first"}, "NODE_RANK=first is not a number"),
    ],
)
def test_an_incomplete_place_is_refused(
    cli: Cli, env: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    code, _, err = cli(*SMALL)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert text in err


def test_accumulation_follows_from_the_global_batch() -> None:
    assert accumulation(64, 8, 2) == 4
    assert accumulation(16, 8, 2) == 1
    with pytest.raises(UserError, match=r"in each of 2 processes.*Use 48 or 64, or datamodule.batch_size=5"):
        accumulation(50, 8, 2)
    with pytest.raises(UserError, match=r"Use 16, or datamodule.batch_size=2\."):
        accumulation(4, 8, 2)


def test_the_global_batch_is_that_of_an_optimizer_step(cli: Cli) -> None:
    steps = ("trainer.max_steps=3", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1")
    code, _, err = cli(*SMALL, *steps, "datamodule.batch_size=16", "datamodule.global_batch_size=48", "run_dir=run")
    assert code == 0, err
    assert "3 steps of 48 sequences" in err
    assert [row["tokens"] for row in log_of()] == [str(step * 48 * 6) for step in (1, 2, 3)]
    code, _, err = cli(*SMALL, "datamodule.batch_size=16", "datamodule.global_batch_size=40", "run_dir=other")
    assert code == 2
    assert "Use 32 or 48, or datamodule.batch_size=10." in err
    both = ("datamodule.batch_size=16", "datamodule.global_batch_size=48", "trainer.accumulate_grad_batches=2")
    code, _, err = cli(*SMALL, *both, "run_dir=other")
    assert code == 2
    assert "trainer.accumulate_grad_batches=2 contradicts datamodule.global_batch_size" in err


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        *(
            ("NVIDIA H200", 989e12),
            ("NVIDIA H100 80GB HBM3", 989e12),
            ("NVIDIA H100 NVL", 835e12),
            ("NVIDIA L40S", 362e12),
        ),
        *(("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA L4", 121e12), ("NVIDIA GeForce RTX 4090", 165.2e12)),
        *(("NVIDIA A10G", None), ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("Quadro", None)),
    ],
)
def test_the_peak_of_a_gpu(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), "bf16-mixed", 768) == peak
    assert peak_flops(torch.device("cuda"), "32-true", 768) is None


def test_the_log_says_the_speed(cli: Cli) -> None:
    steps = ("trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1")
    code, _, err = cli(*SMALL, *steps, "run_dir=run", "model.n_embd=256", "trainer.precision=32-true")
    assert code == 0, err
    header = Path("run/metrics.csv").read_text().splitlines()[0].split(",")
    known = peak_flops(torch.device("cpu"), "32-true", 256) is not None
    assert ("tokens_per_second" in header, "mfu" in header) == (True, known)


SPAWNED = """
import sys
import torch
from pytorch_lightning import Trainer, seed_everything
from mingpt_lightning import GPT, LanguageModel
from mingpt_lightning.checkpoint import Checkpoint
from projects.adder.datamodule import AdderDataModule

if __name__ == "__main__":
    seed_everything(0, verbose=False)
    data = AdderDataModule(batch_size=8)
    gpt = GPT(data.vocab_size, data.block_size, n_layer=1, n_head=2, n_embd=16)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "num_sanity_val_steps": 0}
    trainer = Trainer(
        **quiet, accelerator="cpu", devices=2, strategy=sys.argv[1], max_steps=4, val_check_interval=2,
        check_val_every_n_epoch=None, limit_val_batches=1, use_distributed_sampler=False,
        callbacks=[Checkpoint("run/checkpoints")], default_root_dir="run",
    )
    trainer.fit(LanguageModel(gpt, tokenizer=data.tokenizer), datamodule=data)
    found = LanguageModel.load_from_checkpoint("run/checkpoints/last.ckpt")
    for name, weight in found.gpt.state_dict().items():
        assert torch.equal(weight, gpt.state_dict()[name]), name
    print("trained")
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_spawned_processes_of_a_notebook_write_checkpoints(tmp_path: Path, strategy: str) -> None:
    (tmp_path / "train.py").write_text(SPAWNED)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "train.py", strategy]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "trained" in result.stdout

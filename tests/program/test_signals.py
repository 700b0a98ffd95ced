"""Being asked to stop in training: by a person, a scheduler, or a closed pipe."""

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import projects.adder.datamodule  # noqa: F401  # so that the tokenizer in its checkpoints is known
from mingpt_lightning import LanguageModel
from tests.common import ROOT, SMALL, summary

LONG = (
    *(*SMALL, "trainer=cpu", "trainer.max_steps=1000000", "trainer.val_check_interval=20"),
    *("callbacks.early_stopping=null", "callbacks.samples=null"),
)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_ctrl_c_saves_everything_so_far(tmp_path, number):
    arguments = [sys.executable, str(ROOT / "main.py"), "run_dir=run", *LONG]
    with subprocess.Popen(arguments, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:  # training is under way when the first validation is reported
            if line.startswith("step"):
                break
        process.send_signal(number)
        rest = process.stderr.read()
    assert process.returncode == 128 + number
    assert "Traceback" not in rest
    assert "saved" in rest
    result = summary(tmp_path / "run")
    content = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == result["steps"] > 0
    assert LanguageModel.load_from_checkpoint(tmp_path / "run").gpt.block_size == 6


@pytest.mark.slow
def test_a_preempted_slurm_job_asks_to_run_again_and_goes_on_by_itself(tmp_path):
    # There is no SLURM here: `scontrol` is a script that writes down what it is asked.
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    environment = {**os.environ, "SLURM_JOB_ID": "42", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    command = [sys.executable, str(ROOT / "main.py"), *LONG]
    steps = []
    for number in (signal.SIGUSR1, signal.SIGTERM):
        with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if line.startswith("step"):
                    break
            process.send_signal(number)
            said += process.stderr.readlines()
        assert process.returncode == 143, said
        (run,) = (tmp_path / "runs/adder").iterdir()
        assert run.name.startswith("slurm-42-")
        steps.append(summary(run)["steps"])
        assert any(line.startswith("resuming") for line in said) == (number == signal.SIGTERM)
    assert steps[1] > steps[0] > 0
    assert (tmp_path / "asked").read_text() == "requeue 42\n", "only when its time is over"


@pytest.mark.slow
def test_training_outlives_whoever_reads_its_messages(tmp_path):
    main = shlex.join([sys.executable, str(ROOT / "main.py"), *LONG])
    command = f"{main} trainer.max_steps=60 run_dir=run 2>&1 | head -n 1"
    subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, check=True)
    assert summary(tmp_path / "run")["steps"] == 60
    command = f"exec {main} trainer.max_steps=20 run_dir=closed >&- 2>&-"
    result = subprocess.run(command, shell=True, cwd=tmp_path, check=False)
    assert result.returncode == 0
    assert (tmp_path / "closed/summary.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_leaves_the_terminal_as_it_was(tmp_path):
    """The progress bar hides the cursor; whatever ends the run, it must be there again before the last lines."""
    import pty

    master, slave = pty.openpty()
    command = [sys.executable, str(ROOT / "main.py"), *LONG, "run_dir=run"]
    terminal = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, cwd=tmp_path, stdin=slave, stdout=slave, stderr=slave, env=terminal) as process:
        os.close(slave)
        shown, sent = b"", False
        while True:
            try:
                shown += os.read(master, 65536)
            except OSError:  # the other side is closed
                break
            if b"tokens/s" in shown and not sent:
                process.send_signal(signal.SIGINT)
                sent = True
    os.close(master)
    assert process.returncode == 130
    text = shown.decode(errors="replace")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
    assert text.index("\x1b[?25h") < text.index("stopped before the end")


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_a_signal_ends_the_learning_of_a_vocabulary(tmp_path: Path, number: int) -> None:
    (tmp_path / "dna.txt").write_text("".join(random.Random(0).choices("ACGT", k=4_000_000)))
    data = ("datamodule=text", "datamodule.path=dna.txt", "datamodule.vocab_size=30000")
    command = [sys.executable, str(ROOT / "main.py"), *data, f"datamodule.cache_dir={tmp_path / 'cache'}"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob("cache/*.part")) and process.poll() is None:
            time.sleep(0.1)
        time.sleep(2)
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number, err
    assert err == f"stopped by {signal.Signals(number).name}\n"

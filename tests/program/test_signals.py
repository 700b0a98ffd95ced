"""Being asked to stop: by a person, a scheduler, or a closed pipe."""

import json
import os
import signal
import subprocess
import sys

import pytest

from mingpt_lightning.signals import Stopped, StopSignals
from tests.common import ROOT

LONG = (
    *("model.n_layer=1", "model.n_head=2", "model.n_embd=16", "trainer=cpu", "trainer.max_steps=1000000"),
    *("trainer.val_check_interval=20", "callbacks.early_stopping=null", "callbacks.samples=null"),
)


@pytest.fixture
def stop():
    signals = StopSignals()
    signals.install()
    yield signals
    signals.restore()


def test_outside_of_training_a_signal_ends_the_process_at_once(stop):
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)):
        stop.received = None
        with pytest.raises(Stopped) as caught:
            signal.raise_signal(number)
        assert (caught.value.code, caught.value.number) == (code, number)


def test_in_training_it_waits_until_asked_for(stop):
    stop.waits = True
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGHUP)
    assert stop.received == signal.SIGHUP


def test_what_the_parent_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    signals = StopSignals()
    try:
        signals.install()
        signal.raise_signal(signal.SIGHUP)
        assert signals.received is None
    finally:
        signals.restore()
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_ends_it_at_once():
    code = (
        "import signal; from mingpt_lightning.signals import STOP\n"
        "STOP.install(); STOP.waits = True\n"
        "signal.raise_signal(signal.SIGINT); print('first', flush=True); signal.raise_signal(signal.SIGINT)\n"
        "print('second')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (130, "first\n")


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
        steps.append(json.loads((run / "summary.json").read_text())["steps"])
        assert any(line.startswith("resuming") for line in said) == (number == signal.SIGTERM)
    assert steps[1] > steps[0] > 0
    assert (tmp_path / "asked").read_text() == "requeue 42\n", "only when its time is over"


def test_training_outlives_whoever_reads_its_messages(tmp_path):
    command = f"{sys.executable} {ROOT / 'main.py'} {' '.join(LONG)} trainer.max_steps=200 run_dir=run 2>&1 | head -n 1"
    subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, check=True)
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 200
    closed = [sys.executable, str(ROOT / "main.py"), *LONG, "trainer.max_steps=20", "run_dir=closed"]
    result = subprocess.run(f"exec {' '.join(closed)} >&- 2>&-", shell=True, cwd=tmp_path, check=False)
    assert result.returncode == 0
    assert (tmp_path / "closed/summary.json").exists()

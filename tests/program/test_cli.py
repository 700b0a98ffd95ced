"""Training, evaluation and generation by the command line; `cli` returns (exit code, stdout, stderr)."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from mingpt_lightning import LanguageModel
from mingpt_lightning.cli.config import CONFIG_DIR
from tests.common import CHARS, ROOT, SMALL, TINY, summary


def test_fit_leaves_the_files_of_a_run(cli):
    code, out, err = cli("run_dir=run", *TINY)
    assert (code, out) == (0, "")
    assert "exact match" in err
    assert "task=generate checkpoint=run" in err
    files = {".hydra", "checkpoints", "curves.png", "metrics.csv", "summary.json"}
    assert {f.name for f in Path("run").iterdir()} == files
    assert {f.name for f in Path("run/checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "manifest.json"}
    result = summary()
    assert set(result) == {"task", "metrics", "steps", "tokens", "seconds", "parameters", "checkpoint"}
    assert {"train/loss", "val/loss", "val/exact_match", "test/loss", "test/exact_match"} <= set(result["metrics"])
    assert (result["steps"], result["tokens"]) == (6, 6 * 64 * 6)
    with open("run/metrics.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert any(row["val/loss"] for row in rows)


def test_the_checkpoint_stands_alone(cli, tmp_path):
    assert cli("run_dir=run", "datamodule.ndigit=1", *TINY)[0] == 0
    content = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert content["mingpt_lightning"]["config"]["datamodule"]["ndigit"] == 1
    code, out, _ = cli("task=generate", "checkpoint=run", "prompt=4+5")
    assert code == 0
    assert re.fullmatch(r"4\+5=\d+\n", out)
    for task, split in (("test", "test"), ("validate", "val")):
        code, out, _ = cli(f"task={task}", "checkpoint=run", f"run_dir={task}")
        assert (code, out) == (0, "")
        again = summary(task)["metrics"][f"{split}/loss"]
        assert again == pytest.approx(summary()["metrics"][f"{split}/loss"], abs=1e-6)
    assert LanguageModel.load_from_checkpoint("run").tokenizer.decode([4, 5, 9, 0]) == "4+5=9"


def test_generate_writes_only_text_and_leaves_nothing_behind(cli):
    assert cli("run_dir=run", *CHARS, *TINY)[0] == 0
    before = set(Path().rglob("*"))
    prompt = "It's, a [x] "
    code, out, err = cli("task=generate", "checkpoint=run", f"prompt={prompt}", "num_samples=2", "max_new_tokens=9")
    assert (code, err) == (0, "")
    assert out.startswith(prompt)
    assert len(out) == 2 * (len(prompt) + 9 + 1)
    assert set(Path().rglob("*")) == before
    assert cli("task=generate", "checkpoint=run", f"prompt={prompt}", "num_samples=2", "max_new_tokens=9")[1] == out
    code, again, _ = cli("task=generate", "checkpoint=run", f"prompt={prompt}", "max_new_tokens=9", "output=o.jsonl")
    assert (code, again) == (0, "")
    (line,) = map(json.loads, Path("o.jsonl").read_text().splitlines())
    assert line["prompt"] == prompt
    assert len(line["completion"]) == 9


def test_chargpt_reads_a_file_and_keeps_its_vocabulary(cli):
    Path("book, the first.txt").write_text("".join(chr(97 + i * i % 17) for i in range(3000)), encoding="utf-8")
    assert cli("run_dir=run", *CHARS, "datamodule.path=book, the first.txt", *TINY)[0] == 0
    assert "test/bits_per_character" in summary()["metrics"]
    code, _, err = cli("task=generate", "checkpoint=run", "prompt=aé")
    assert code == 2
    assert "'é' (U+00E9)" in err
    Path("other.txt").write_text("abcde" * 500 + "ü" + "abcde" * 500)
    code, _, err = cli("task=test", "checkpoint=run", "datamodule=chargpt", "datamodule.path=other.txt")
    assert code == 2
    assert "'ü' (U+00FC)" in err
    code, _, _ = cli(
        "task=test",
        "checkpoint=run",
        "datamodule=chargpt",
        "datamodule.path=other.txt",
        "datamodule.on_unknown=a",
        "run_dir=t",
    )
    assert code == 0


def test_seed_zero_is_a_seed(cli):
    losses = []
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert cli(f"run_dir={run}", f"seed={seed}", *TINY)[0] == 0
        losses.append(summary(run)["metrics"]["test/loss"])
    assert losses[0] == losses[1] != losses[2]


def test_everything_can_be_switched_off(cli):
    switched_off = [
        f"callbacks.{name}=null" for name in yaml.safe_load((CONFIG_DIR / "callbacks/default.yaml").read_text())
    ]
    code, _, _ = cli("run_dir=run", "logger=none", *switched_off, *TINY)
    assert code == 0
    assert {f.name for f in Path("run").iterdir()} == {".hydra", "summary.json"}
    assert summary()["checkpoint"] is None
    assert cli("run_dir=other", "callbacks=none", *TINY)[0] == 0


def test_several_loggers_at_once(cli):
    assert cli("run_dir=run", "logger=many", *TINY)[0] == 0
    assert Path("run/metrics.csv").exists()
    assert list(Path("run/tensorboard").glob("events*"))


def test_trainer_options(cli):
    code, _, err = cli("run_dir=run", *SMALL, "trainer=debug", "trainer.max_steps=4", "trainer.val_check_interval=2")
    assert code == 0, err
    code, _, _ = cli("run_dir=epochs", *SMALL, "datamodule.ndigit=1", "trainer.max_epochs=2", "trainer.max_steps=-1")
    assert code == 0
    assert summary("epochs")["steps"] == 2  # 70 problems are one batch of 64 an epoch


def test_optimizers_and_schedules(cli):
    for number, choice in enumerate(("optimizer=sgd", "scheduler=linear", "scheduler=constant")):
        assert cli(f"run_dir=run{number}", choice, *TINY)[0] == 0
    assert cli("run_dir=adagrad", "optimizer=sgd", "optimizer._target_=torch.optim.Adagrad", "~optimizer.momentum",
               "~optimizer.nesterov", *TINY)[0] == 0  # fmt: skip


def test_newer_layers_muon_and_wsd_from_the_first_step_to_generation(cli):
    choices = ("model=gpt-modern-pico", "optimizer=muon", "scheduler=wsd")
    code, _, err = cli(*choices, *TINY, "run_dir=modern")
    assert code == 0, err
    code, out, err = cli("task=generate", "checkpoint=modern", "prompt=85+50")
    assert (code, out[:6]) == (0, "85+50="), err
    code, _, err = cli("task=export", "checkpoint=modern", "output=folder")
    assert code == 2
    assert err.startswith("error: transformers' GPT-2 has no ")
    assert not Path("folder").exists()


def test_the_first_lines_say_what_is_trained(cli):
    code, _, err = cli(*TINY, "trainer=cpu", "run_dir=run")
    assert code == 0
    for line in (
        r"data +adder: 9,000 train, 500 val, 500 test sequences of 6 tokens, vocabulary of 10",
        r"model +GPT of [\d,]+ parameters, n_layer=1 n_head=2 n_embd=16",
        r"training +6 steps of 64 sequences \(384 tokens\), AdamW, learning rate 0\.0168",
        r"device +cpu, 32-true, \d+ threads",
        r"run folder +run",
    ):
        assert re.search(rf"^{line}$", err, re.MULTILINE), line
    assert err.index("run folder") < err.index("step ")


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a compiler")
def test_compiled_blocks_learn_the_same_and_leave_no_trace_in_checkpoints(cli):
    code, _, err = cli(*TINY, "compile=false", "run_dir=plain")
    assert code == 0, err
    assert "threads, compiled" not in err
    command = [sys.executable, str(ROOT / "main.py"), *TINY, "compile=true", "run_dir=compiled"]
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "threads, compiled" in result.stderr
    for run in ("plain", "compiled"):
        names = torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        assert not [name for name in names if "_orig_mod" in name]
    plain, compiled = (summary(run)["metrics"]["test/loss"] for run in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, abs=1e-4)

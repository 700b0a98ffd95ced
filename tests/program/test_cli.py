"""Training, evaluation and generation by the command line; `cli` returns (exit code, stdout, stderr)."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from mingpt_lightning import LanguageModel, Tokenizer
from mingpt_lightning.cli.config import CONFIG_DIR
from mingpt_lightning.files import lock
from tests.common import CHARS, ROOT, SMALL, TINY, summary


@pytest.mark.curves
def test_fit_leaves_the_files_of_a_run(cli):
    code, out, err = cli("run_dir=run", *TINY)
    assert (code, out) == (0, "")
    assert "exact match" in err
    assert "task=generate checkpoint=run" in err
    files = {".hydra", "checkpoints", "curves.png", "metrics.csv", "summary.json"}
    assert {f.name for f in Path("run").iterdir()} == files
    assert {f.name for f in Path("run/checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "manifest.json"}
    result = summary()
    assert set(result) == {"task", "metrics", "steps", "tokens", "seconds", "parameters", "checkpoint", "ended"}
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


def test_an_evaluation_does_not_write_over_another_run(cli):
    for run in ("run", "other"):
        assert cli(f"run_dir={run}", "callbacks=none" if run == "other" else "seed=0", *TINY)[0] == 0
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for folder, holds in (("run", ".ckpt"), ("other", "summary.json")):
        code, _, err = cli("task=test", "checkpoint=run", f"run_dir={folder}")
        assert (code, len(err.splitlines())) == (2, 1), err
        assert f"{folder} holds another run: " in err
        assert holds in err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    assert cli("task=test", "checkpoint=run", "run_dir=result")[0] == 0
    assert cli("task=test", "checkpoint=run", "run_dir=result")[0] == 0, "the same again"
    code, _, err = cli("task=validate", "checkpoint=run", "run_dir=result")
    assert (code, "result holds another run: summary.json" in err) == (2, True)


def test_generate_writes_only_text_and_leaves_nothing_behind(cli):
    assert cli("run_dir=run", *CHARS, *TINY)[0] == 0
    before = set(Path().rglob("*"))
    prompt = "It's, a [x] "
    code, out, err = cli("task=generate", "checkpoint=run", f"prompt={prompt}", "num_samples=2", "max_new_tokens=9")
    assert (code, err) == (0, "")
    assert out.startswith(prompt)
    assert len(out.replace(f"{'-' * 40}\n", "")) == 2 * (len(prompt) + 9 + 1)
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
    assert err.startswith("error: transformers' ")
    assert not Path("folder").exists()


def test_the_first_lines_say_what_is_trained(cli):
    code, _, err = cli(*TINY, "trainer=cpu", "run_dir=run")
    assert code == 0
    for line in (
        r"data +adder: 9,000 train, 500 val, 500 test sequences of 6 tokens, vocabulary of 10",
        r"model +GPT of [\d,]+ parameters, n_layer=1 n_head=2 n_embd=16",
        r"training +6 steps of 64 sequences \(384 tokens\), AdamW, learning rate 0\.0168",
        r"device +cpu, 32-true, \d+ threads?",
        r"run folder +run",
    ):
        assert re.search(rf"^{line}$", err, re.MULTILINE), line
    assert err.index("run folder") < err.index("step ")


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a compiler")
def test_compiled_blocks_learn_the_same_and_leave_no_trace_in_checkpoints(cli):
    code, _, err = cli(*TINY, "compile=false", "run_dir=plain")
    assert code == 0, err
    assert ", compiled" not in err
    command = [sys.executable, str(ROOT / "main.py"), *TINY, "compile=true", "run_dir=compiled"]
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert ", compiled" in result.stderr
    for run in ("plain", "compiled"):
        names = torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        assert not [name for name in names if "_orig_mod" in name]
    plain, compiled = (summary(run)["metrics"]["test/loss"] for run in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, abs=1e-4)


@pytest.mark.curves
def test_metrics_csv_is_a_table_that_plots(cli):
    assert cli("run_dir=run", *TINY, "trainer.log_every_n_steps=2")[0] == 0
    with open("run/metrics.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["2", "3", "4", "6"], "each logged step and each validation, once"
    assert [row["tokens"] for row in rows] == [str(384 * n) for n in (2, 3, 4, 6)]
    assert all(row["train/loss"] for row in rows)
    assert [bool(row["val/loss"]) for row in rows] == [False, True, True, True], "from the first validation on"
    assert {"lr-AdamW/hidden", "train/grad_norm", "val/exact_match", "test/loss"} <= set(rows[0])
    assert list(rows[0])[:3] == ["step", "tokens", "seconds"]
    assert (rows[-1]["test/loss"], rows[-1]["step"]) == (
        str(summary()["metrics"]["test/loss"]),
        str(summary()["steps"]),
    )
    assert Path("run/curves.png").read_bytes().startswith(b"\x89PNG")


def test_what_an_evaluation_finds_goes_to_its_run(cli):
    assert cli("run_dir=runs/adder/mine", *TINY)[0] == 0
    before = {path for path in Path().rglob("*") if path.is_dir()}
    for task, split in (("test", "test"), ("validate", "val")):
        code, out, err = cli(f"task={task}", "checkpoint=runs/adder/mine")
        assert (code, out) == (0, "")
        found = json.loads(Path(f"runs/adder/mine/{task}.json").read_text())
        assert (found["task"], found["steps"]) == (task, 6)
        loss, perplexity = (found["metrics"][f"{split}/{name}"] for name in ("loss", "perplexity"))
        assert f"{split}/loss  {loss:.4f}  (perplexity {perplexity:,.3f})" in err
    assert {path for path in Path().rglob("*") if path.is_dir()} == before
    assert summary("runs/adder/mine")["task"] == "fit"
    code, _, err = cli("task=test", "checkpoint=runs/adder/mine", "trainer.limit_test_batches=0")
    assert code == 2
    assert "error: trainer.limit_test_batches=0 leaves nothing to evaluate" in err
    shutil.copy("runs/adder/mine/checkpoints/best.ckpt", "alone.ckpt")
    assert cli("task=test", "checkpoint=alone.ckpt")[0] == 0
    assert {path for path in Path().rglob("*") if path.is_dir()} == before


@pytest.mark.slow
def test_the_seconds_are_those_since_the_process_began(tmp_path):
    command = [sys.executable, str(ROOT / "main.py"), "run_dir=run", *TINY]
    start = time.perf_counter()
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    wall = time.perf_counter() - start
    assert wall / 2 < summary(tmp_path / "run")["seconds"] < wall


def test_a_project_with_a_tokenizer_of_its_own(cli, monkeypatch, tmp_path):
    """LowerTokenizer is no direct child of Tokenizer; what it trained must be read back as it was."""
    package = tmp_path / "projects" / "lower"
    package.mkdir(parents=True)
    (package / "datamodule.py").write_text(
        "from mingpt_lightning import CharTokenizer\n"
        "from projects.chargpt.datamodule import CharDataModule\n\n\n"
        "class LowerTokenizer(CharTokenizer):\n"
        '    name = "lower"\n\n'
        "    def encode(self, text):\n"
        "        return super().encode(text.lower())\n\n\n"
        "class LowerDataModule(CharDataModule):\n"
        "    def __init__(self, path, batch_size=4, seed=0):\n"
        "        super().__init__(path, block_size=8, batch_size=batch_size, seed=seed)\n"
        "        self.tokenizer = LowerTokenizer(self.tokenizer.arguments['characters'])\n"
    )
    (tmp_path / "conf/datamodule").mkdir(parents=True)
    config = "_target_: projects.lower.datamodule.LowerDataModule\npath: book.txt\nseed: ${seed}\n"
    (tmp_path / "conf/datamodule/lower.yaml").write_text(config)
    Path("book.txt").write_text("the cat sat on the mat. " * 30)
    monkeypatch.setattr(Tokenizer, "registry", dict(Tokenizer.registry))
    conf = ("--config-dir", str(tmp_path / "conf"))
    code, _, err = cli(*conf, "datamodule=lower", "run_dir=run", *TINY)
    assert code == 0, err
    code, out, err = cli(*conf, "task=generate", "checkpoint=run", "prompt=The Cat", "max_new_tokens=5")
    assert code == 0, err
    assert out.startswith("the cat")
    assert type(LanguageModel.load_from_checkpoint("run").tokenizer).__name__ == "LowerTokenizer"


def test_without_a_limit_early_stopping_ends_a_run(cli):
    stop = ("callbacks.early_stopping.stopping_threshold=9.0",)
    code, _, err = cli("run_dir=run", *SMALL, "trainer.max_steps=-1", "trainer.val_check_interval=3", *stop)
    assert code == 0, err
    assert summary()["steps"] == 3


def test_a_broken_pipe_in_a_task_is_no_quiet_end(cli, monkeypatch):
    def broken(self, batch, batch_idx):
        raise BrokenPipeError

    monkeypatch.setattr(LanguageModel, "training_step", broken)
    with pytest.raises(BrokenPipeError):
        cli("run_dir=run", *TINY)


def test_a_folder_in_use_names_the_key(cli):
    Path("run").mkdir()
    with lock(Path("run")):
        code, _, err = cli("run_dir=run", *TINY)
    assert code == 2
    assert re.search(r"run is in use by process \d+ \(run_dir\)\.", err)


def test_an_evaluation_of_a_run_that_may_not_be_written_is_still_said(cli, monkeypatch):
    assert cli("run_dir=run", *TINY)[0] == 0

    def forbidden(*arguments, **more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mingpt_lightning.cli.summary.write_text", forbidden)
    code, _, err = cli("task=test", "checkpoint=run")
    assert code == 0
    assert "test/loss" in err
    assert "not written cannot write run/test.json: Permission denied" in err


def test_a_validation_amid_an_accumulation_is_in_the_row_of_its_step(cli):
    odd = ("trainer.accumulate_grad_batches=2", "trainer.val_check_interval=5")
    assert cli("run_dir=run", *TINY, *odd, "trainer.max_steps=5")[0] == 0
    with open("run/metrics.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert [bool(row["val/loss"]) for row in rows] == [False, True, True, True, True]
    assert rows[3]["val/loss"] == rows[1]["val/loss"] != rows[4]["val/loss"]


def test_readme_shows_what_is_printed(cli):
    """The lines of README's block are those of a run, but for figures and the time."""
    block = (ROOT / "README.md").read_text().split("<!-- terminal output")[1].split("```")[1]
    code, _, err = cli("trainer.max_steps=20", "trainer.val_check_interval=10")
    assert code == 0

    def shape(text):
        lines = [re.sub(r"\d[\d.,:_-]*", "0", line).replace("threads", "thread") for line in text.strip().splitlines()]
        return [line for line in lines if line and not line.startswith(("step", "  ", "…"))]

    assert shape(block) == shape(err)

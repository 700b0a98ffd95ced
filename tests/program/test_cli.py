"""The command line; `cli` returns (exit code, stdout, stderr)."""

import csv
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml

from mingpt_lightning import GPT, CharTokenizer, LanguageModel
from mingpt_lightning.cli import quoted
from mingpt_lightning.config import CONFIG_DIR
from tests.common import ROOT

TINY = (
    *("model.n_layer=1", "model.n_head=2", "model.n_embd=16"),
    *("trainer.max_steps=6", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1"),
)
CHARS = (
    "datamodule=chargpt",
    "datamodule.block_size=16",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=2",
)


def summary(run: str = "run") -> dict:
    return json.loads(Path(run, "summary.json").read_text())


def test_fit_leaves_the_files_of_a_run(cli):
    code, out, err = cli("run_dir=run", *TINY)
    assert (code, out) == (0, "")
    assert "exact match" in err
    assert "task=generate checkpoint=run" in err
    assert {f.name for f in Path("run").iterdir()} == {".hydra", "checkpoints", "metrics.csv", "summary.json"}
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
    code, _, err = cli("run_dir=run", *TINY[:3], "trainer=debug", "trainer.max_steps=4", "trainer.val_check_interval=2")
    assert code == 0, err
    code, _, _ = cli("run_dir=epochs", *TINY[:3], "datamodule.ndigit=1", "trainer.max_epochs=2", "trainer.max_steps=-1")
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


def test_the_choice_of_the_machine_is_printed(cli):
    code, _, err = cli(*TINY, "trainer=cpu", "run_dir=run")
    assert code == 0
    assert re.search(r"GPT of [\d,]+ parameters on cpu, 32-true, \d+ threads$", err, re.MULTILINE)


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a compiler")
def test_compiled_blocks_learn_the_same_and_leave_no_trace_in_checkpoints(tmp_path):
    losses = []
    for compiled in ("true", "false"):
        command = [sys.executable, str(ROOT / "main.py"), *TINY, f"compile={compiled}", f"run_dir=run_{compiled}"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert ("threads, compiled" in result.stderr) == (compiled == "true")
        run = tmp_path / f"run_{compiled}"
        losses.append(json.loads((run / "summary.json").read_text())["metrics"]["test/loss"])
        names = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        assert not [name for name in names if "_orig_mod" in name]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_compiling_without_a_compiler_is_a_mistake(cli, monkeypatch):
    monkeypatch.setenv("PATH", "")
    code, _, err = cli(*TINY, "trainer=cpu", "compile=true")
    assert code == 2
    assert err.splitlines()[-1] == (
        "error: torch.compile needs a C++ compiler (compile). Install g++, or use compile=false."
    )


def test_threads_do_not_spin_and_transformers_stays_out_unless_asked(tmp_path):
    code = """
import os, sys
from mingpt_lightning.cli import main
sys.argv = ["main.py", "trainer=debug", "trainer.max_steps=1", "run_dir=run", "logger=none"]
main()
print(os.environ["GOMP_SPINCOUNT"], "transformers" in sys.modules, "matplotlib" in sys.modules)
from torchmetrics.utilities.imports import _TRANSFORMERS_AVAILABLE
print(bool(_TRANSFORMERS_AVAILABLE))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP"))}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["1000", "False", "False", "True"], result.stderr


def test_every_trainer_argument_is_in_the_config():
    known = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self", "logger", "callbacks"}
    ours = set(yaml.safe_load((CONFIG_DIR / "trainer/auto.yaml").read_text())) - {"_target_"}
    assert ours == known


BAD = [
    (("compile=perhaps",), 2, "compile=perhaps is not possible (compile). Use true, false or auto."),
    (("model=gpt-modern-pico", "model.position=rotaryy"), 2, "position=rotaryy is not known (position). Did you mean"),
    (("optimizer=muon", "optimizer.lr=0.0"), 2, "optimizer.lr=0.0 is out of range (optimizer.lr). Use above 0."),
    (("model=gtp2",), 2, "Did you mean 'gpt2'?"),
    (("model.n_layerr=4",), 2, "Did you mean 'n_layer'?"),
    (("modle=gpt2",), 2, "Did you mean 'model'?"),
    (("datamodule=sort", "datamodule.lenght=4"), 2, "Did you mean 'length'?"),
    (("callbacks.early_stoping=null",), 2, "Did you mean 'early_stopping'?"),
    (("experiment=nothing",), 2, "shakespeare_char"),
    (("task=fly",), 2, "Choose one of: check, export, fit"),
    (("+model.nlayer=3",), 2, "unknown key 'model.nlayer'"),
    (("+colour=3",), 2, "unknown key 'colour'"),
    (("trainer.max_steps=abc",), 2, "is not an integer"),
    (("trainer.max_steps=1e3",), 2, "is not an integer"),
    (("trainer.max_steps=1,2",), 2, "Add -m for a sweep"),
    (("trainer.limit_val_batches=abc",), 2, "limit_val_batches"),
    (("trainer.accelerator=abacus",), 2, "abacus"),
    (("trainer.precision=12",), 2, "recision"),
    (("model=5",), 2, "model=5 is not possible (model). Name one of its choices."),
    (("model.n_embd=50",), 2, "Try n_embd=48 or 56"),
    (("model.n_layer=0",), 2, "n_layer=0 is not a positive integer"),
    (("model.n_head=-1",), 2, "n_head=-1"),
    (("model.dropout=1.5",), 2, "[0, 1)"),
    (("datamodule.batch_size=0",), 2, "batch_size=0"),
    (("datamodule.ndigit=0",), 2, "Use 1 to 18"),
    (("datamodule=sort", "datamodule.length=-2"), 2, "length=-2"),
    (("seed=-1",), 2, "seed=-1"),
    (("seed=null",), 2, "seed=null is not possible"),
    (("model=null",), 2, "model=null is not possible (model). Name one of its choices."),
    (("callbacks=null",), 2, "Use callbacks=none."),
    (("model.dropout=nan",), 2, "model.dropout=nan is not a finite number"),
    (("optimizer.lr=0",), 2, "optimizer.lr=0 is out of range (optimizer.lr). Use above 0."),
    (("optimizer.betas=[0.9,1.5]",), 2, "this optimizer cannot be made: Invalid beta"),
    (("scheduler.warmup=2",), 2, "scheduler.warmup=2 is not a share"),
    (("trainer.accumulate_grad_batches=0",), 2, "Use 1 or more"),
    (("trainer.accumulate_grad_batches=100000",), 2, "is more than the 140 batches of an epoch"),
    (("trainer.check_val_every_n_epoch=1", "trainer.val_check_interval=999"), 2, "=999 is more than the 140 batches"),
    (("trainer.val_check_interval=0",), 2, "trainer.val_check_interval=0 is out of range"),
    (("trainer.max_steps=0",), 2, "trainer.max_steps=0 trains nothing"),
    (("trainer.max_steps=null",), 2, "trainer.max_steps=null is not possible"),
    (("trainer.max_epochs=many",), 2, "trainer.max_epochs=many is not an integer"),
    (("trainer.gradient_clip_val=-1",), 2, "Use 0 or more"),
    (("trainer.limit_train_batches=0",), 2, "Use above 0"),
    (("trainer.devices=abc",), 2, "(trainer.devices=abc)"),
    (("callbacks.samples.every_n_validations=0",), 2, "every_n_validations=0"),
    (("callbacks.checkpoint.every_n_train_steps=0",), 2, "every_n_train_steps=0"),
    (("callbacks.checkpoint.mode=mid",), 2, "Use min or max"),
    (("optimized_metric=train/loss",), 2, "Choose one of: val/loss"),
    (("optimizer._target_=os.system",), 2, "os.system is not allowed (optimizer._target_)"),
    (("trainer.max_time=${nothing}",), 2, "nothing"),
    (("datamodule=chargpt", "datamodule.path=white.txt"), 2, "there is no text in white.txt"),
    (("resume=maybe",), 2, "Use auto, must or never"),
    (("resume=must",), 3, "there is nothing to resume"),
    (("--nonsense",), 2, "unknown option --nonsense"),
    (("nonsense",), 2, "nonsense"),
    (("--cfg", "nothing"), 2, "--cfg"),
    (("run_dir=/dev/null/x",), 2, "cannot write /dev/null/x"),
    (("optimizer.lr=-1",), 2, "-1"),
    (("+optimizer.speed=3",), 2, "speed"),
    (("optimized_metric=val/beauty",), 2, "val/beauty"),
    (("datamodule=chargpt", "datamodule.path=missing.txt"), 2, "missing.txt does not exist"),
    (("datamodule=chargpt", "datamodule.path=empty.txt"), 2, "is empty"),
    (("datamodule=chargpt", "datamodule.path=latin.txt"), 2, "is not UTF-8: byte 3"),
    (("datamodule=chargpt", "datamodule.path=short.txt"), 2, "too few for block_size=64"),
    (("datamodule=chargpt", "datamodule.path=."), 2, "is a folder"),
    (("datamodule=chargpt", "datamodule.split=[0.5,0.1,0.1]"), 2, "does not add up to 1"),
    (("datamodule=chargpt", "datamodule.block_size=0"), 2, "block_size=0"),
    (("run_dir=file.txt",), 2, "file.txt"),
    (("run_dir=full",), 2, "already holds a run"),
    (("task=test",), 2, "needs a checkpoint"),
    (("task=generate", "checkpoint=nowhere"), 3, "nowhere does not exist"),
    (("task=generate", "checkpoint=garbage.ckpt"), 3, "garbage.ckpt is damaged: it is no checkpoint"),
    (("task=generate", "checkpoint=empty.txt"), 3, "empty.txt is damaged: it is empty"),
    (("task=generate", "checkpoint=foreign.ckpt"), 3, "is not a checkpoint of mingpt_lightning"),
    (("task=generate", "checkpoint=pickle.ckpt"), 3, "pickle.ckpt holds code ("),
    (("task=generate", "checkpoint=https://example.org/a.ckpt"), 3, "URL"),
    (("task=generate", "checkpoint=."), 3, "holds no"),
    (("task=generate", "checkpoint=python.ckpt", "prompt=a", "temperature=warm"), 2, "temperature=warm"),
    (("task=test", "checkpoint=python.ckpt"), 3, "does not say which data"),
]


class Canary:
    def __reduce__(self):
        return Path.touch, (Path("canary"),)


@pytest.mark.parametrize(("arguments", "code", "message"), BAD, ids=[" ".join(case[0]) for case in BAD])
def test_a_mistake_is_one_line(cli, arguments, code, message):
    Path("empty.txt").write_text("")
    Path("white.txt").write_text(" \n" * 999)
    Path("latin.txt").write_bytes("abcé".encode("latin-1") * 999)
    Path("short.txt").write_text("short but fine")
    Path("file.txt").write_text("not a folder")
    Path("garbage.ckpt").write_bytes(b"PK garbage" * 99)
    Path("full/checkpoints").mkdir(parents=True)
    Path("full/checkpoints/last.ckpt").write_bytes(b"precious")
    torch.save({"weights": torch.zeros(3)}, "foreign.ckpt")
    torch.save({"weights": Canary()}, "pickle.ckpt")
    system = LanguageModel(GPT(2, 4, n_layer=1, n_head=1, n_embd=4), tokenizer=CharTokenizer(characters="ab"))
    ours: dict = {"state_dict": system.state_dict(), "global_step": 0}
    system.on_save_checkpoint(ours)
    torch.save(ours, "python.ckpt")
    extra = TINY[3:] if arguments[0] in ("optimized_metric=val/beauty", "run_dir=file.txt") else ()
    actual, out, err = cli(*arguments, *extra)
    assert actual == code, err
    assert message in err
    assert out == ""
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
    assert not Path("canary").exists()
    assert not Path("runs").exists(), "a mistake leaves a run folder behind"
    assert Path("full/checkpoints/last.ckpt").read_bytes() == b"precious"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu(cli):
    for arguments in (["trainer=gpu"], ["trainer.accelerator=gpu"]):
        code, _, err = cli(*arguments)
        assert code == 2
        assert "there is no GPU here" in err


def test_a_bad_config_is_refused_before_anything_heavy_is_imported(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for arguments in ("--help", "model=gtp2", "model.n_layerr=4", "trainer.max_steps=abc", "model.n_embd=50"):
        code = (
            "import sys; from mingpt_lightning.cli import main\n"
            f"sys.argv = ['main.py', {arguments!r}]\n"
            "try: main()\n"
            "except SystemExit: pass\n"
            "print(sorted({'torch', 'pytorch_lightning', 'transformers'} & set(sys.modules)))"
        )
        run = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
        )
        assert run.stdout.splitlines()[-1] == "[]", arguments


def test_help_is_a_page(cli):
    code, out, _ = cli("--help")
    assert code == 0
    for word in ("python main.py", "task=generate", "model: ", "experiment: ", "checkpoint=RUN", "Tab completion"):
        assert word in out
    assert len(out.splitlines()) < 60


def test_tab_completion(cli):
    env = {**os.environ, "COMP_LINE": "python main.py model=gpt2-", "COMP_POINT": "26", "_HYDRA_COMPLETION_": "1"}
    run = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), "-sc", "query=bash"],
        capture_output=True,
        text=True,
        env=env,
        check=True,
    )
    assert "model=gpt2-medium" in run.stdout


def test_quoting_takes_text_as_typed():
    assert quoted("prompt=a, b") == "prompt='a, b'"
    assert quoted("prompt=it's") == r"prompt='it\'s'"
    assert quoted("prompt='already'") == "prompt='already'"
    assert quoted("trainer.max_steps=5") == "trainer.max_steps=5"
    assert quoted("prompt=null") == "prompt=null"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_everything_so_far(tmp_path, number):
    arguments = [sys.executable, str(ROOT / "main.py"), "run_dir=run", *TINY[:3], "trainer.max_steps=1000000"]
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
    result = json.loads((tmp_path / "run/summary.json").read_text())
    content = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == result["steps"] > 0
    assert LanguageModel.load_from_checkpoint(tmp_path / "run").gpt.block_size == 6

"""What comes before a task: help, completion, quoting, and how little is imported for it."""

import inspect
import os
import re
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import yaml

import mingpt_lightning
from mingpt_lightning.cli.config import CONFIG_DIR
from mingpt_lightning.cli.overrides import quoted
from tests.common import ROOT, python


def test_help_is_a_page(cli):
    code, out, _ = cli("--help")
    assert code == 0
    assert out.startswith("usage: python main.py ")
    for word in ("task=generate", "  model  ", "gpt-nano (3x48)", "  experiment  ", "checkpoint=RUN", "Tab completion"):
        assert word in out
    assert len(out.splitlines()) < 60
    assert max(map(len, out.splitlines())) <= 100


def test_help_of_a_task_shows_its_keys(cli):
    code, out, _ = cli("task=generate", "--help")
    assert code == 0
    assert out.startswith("usage: python main.py task=generate ")
    for key in yaml.safe_load((CONFIG_DIR / "task/generate.yaml").read_text()).keys() - {"task", "hydra"}:
        assert re.search(rf"^  {key}=\S+ +\w", out, re.MULTILINE), key
    assert max(map(len, out.splitlines())) <= 100
    assert "model.n_layer=12" in cli("model=gpt2", "--help")[1]


@pytest.mark.parametrize(
    "path", sorted(CONFIG_DIR.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}={path.stem}"
)
def test_help_of_every_choice_is_readable(cli, path):
    code, out, _ = cli(f"{path.parent.name}={path.stem}", "--help")
    assert code == 0
    assert out.startswith(f"usage: python main.py {path.parent.name}={path.stem} ")
    assert max(map(len, out.splitlines())) <= 100
    section = yaml.safe_load(path.read_text()) or {}
    values = [key for key, value in section.items() if not isinstance(value, dict) and not key.startswith("_")]
    assert all(f"{key}=" in out for key in values if key not in ("defaults", "task"))


@pytest.mark.parametrize("option", ["--help", "--info", "--version"])
def test_a_reader_may_leave_early(tmp_path, option):
    command = f"{sys.executable} -u {ROOT / 'main.py'} {option} | head -n 1"
    result = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == ""


def test_the_version_is_the_librarys(cli):
    assert cli("--version")[1] == f"mingpt-lightning {mingpt_lightning.__version__}\n"


def test_python_m_is_the_same_program(tmp_path):
    command = [sys.executable, "-m", "mingpt_lightning", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("usage: python -m mingpt_lightning ")
    assert max(map(len, result.stdout.splitlines())) <= 100


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
    assert quoted("trainer.max_steps=5") == "trainer.max_steps=5"
    assert quoted("checkpoint=null") == "checkpoint=null"


def test_every_trainer_argument_is_in_the_config():
    known = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self", "logger", "callbacks"}
    ours = set(yaml.safe_load((CONFIG_DIR / "trainer/auto.yaml").read_text())) - {"_target_"}
    assert ours == known


def test_a_bad_config_is_refused_before_anything_heavy_is_imported(tmp_path):
    for arguments in ("--help", "model=gtp2", "model.n_layerr=4", "trainer.max_steps=abc", "model.n_embd=50"):
        code = (
            "import sys; from mingpt_lightning.cli.main import main\n"
            f"sys.argv = ['main.py', {arguments!r}]\n"
            "try: main()\n"
            "except SystemExit: pass\n"
            "print(sorted({'torch', 'pytorch_lightning', 'transformers'} & set(sys.modules)))"
        )
        assert python(code, cwd=tmp_path).stdout.splitlines()[-1] == "[]", arguments


def test_threads_do_not_spin_and_transformers_stays_out_unless_asked(tmp_path):
    code = """
import os, sys
from mingpt_lightning.cli.main import main
sys.argv = ["main.py", "trainer=debug", "trainer.max_steps=1", "run_dir=run", "logger=none"]
main()
print(os.environ["GOMP_SPINCOUNT"], "transformers" in sys.modules, "matplotlib" in sys.modules)
from torchmetrics.utilities.imports import _TRANSFORMERS_AVAILABLE
print(bool(_TRANSFORMERS_AVAILABLE))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP"))}
    result = python(code, cwd=tmp_path, env=environment)
    assert result.stdout.split() == ["1000", "False", "False", "True"], result.stderr

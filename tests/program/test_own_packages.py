"""Classes of an installed package that declares itself, of one that the user trusts, and of neither."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from mingpt_lightning.cli.build import check_targets
from mingpt_lightning.errors import UserError
from tests.common import ROOT, SMALL, Cli, summary

CODE = """
import os
import subprocess
from pathlib import Path

import pytorch_lightning as pl
import torch
from mingpt_lightning import GPT, LanguageModel
from projects.adder.datamodule import AdderDataModule, AdderTokenizer
from pytorch_lightning.loggers import CSVLogger

class Signs(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure else None
        for group in self.param_groups:
            for weight in group["params"]:
                weight -= group["lr"] * weight.grad.sign()
        return loss

class Scaled(GPT):
    def __init__(self, vocab_size, block_size, *, scale=1.0, **sizes):
        super().__init__(vocab_size, block_size, **sizes)
        self.scale = scale

    def logits(self, hidden):
        return self.scale * super().logits(hidden)

class Squared(LanguageModel):
    def loss_sum(self, inputs, targets):
        total, tokens = super().loss_sum(inputs, targets)
        return total.square() / tokens, tokens

class Digits(AdderTokenizer):
    name = "NAME digits"

class Sums(AdderDataModule):
    def __init__(self, tokenizer, batch_size=64, seed=0):
        super().__init__(tokenizer.ndigit, batch_size, seed)
        self.tokenizer = tokenizer

class Touch(pl.Callback):
    def __init__(self, file):
        self.file = file

    def on_fit_end(self, trainer, system):
        Path(self.file).touch()

class Lines(CSVLogger):
    pass

def write(file):
    Path(file).touch()
    return 64

def constant(step, total_steps):
    return 1.0
"""
YAML = {
    "optimizer": "_target_: NAME.parts.Signs\n_partial_: true\nlr: 0.002\n",
    "scheduler": "_target_: NAME.parts.constant\n_partial_: true\n",
    "model": "_target_: NAME.parts.Scaled\nn_layer: 1\nn_head: 2\nn_embd: 16\nscale: 4.0\n",
    "system": "_target_: NAME.parts.Squared\n",
    "datamodule": "_target_: NAME.parts.Sums\ntokenizer:\n  _target_: NAME.parts.Digits\n  ndigit: 1\nseed: ${seed}\n",
    "callbacks": "defaults: [default]\ntouch:\n  _target_: NAME.parts.Touch\n  file: touched\n",
    "logger": "defaults: [csv]\nlines:\n  _target_: NAME.parts.Lines\n  save_dir: lines\n",
}
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.0"
"""
DECLARED = '\n[project.entry-points.mingpt_lightning]\n{name} = "{name}"\n'
SHORT = ("trainer.max_steps=4", "trainer.val_check_interval=4", "trainer=cpu", "run_dir=run")
TRUST = "MINGPT_LIGHTNING_TRUST"


def install(name: str, project: str, folder: Path, site: Path) -> None:
    """Install a package, with a folder `configs`, where Python will find it."""
    package = folder / name
    for file, text in {
        "__init__.py": "",
        "parts.py": CODE,
        **{f"configs/{g}/{name}.yaml": y for g, y in YAML.items()},
    }.items():
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).write_text(text.replace("NAME", name))
    (folder / "pyproject.toml").write_text(project.format(name=name))
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "install", "-q", *offline, "--target", str(site), str(folder)]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two installed packages: `lab` declares itself, `quiet` does not."""
    pytest.importorskip("hatchling", reason="needs: pip install -r requirements-dev.txt")
    pytest.importorskip("pip")
    site = tmp_path_factory.mktemp("site")
    install("lab", PROJECT + DECLARED, tmp_path_factory.mktemp("lab"), site)
    install("quiet", PROJECT, tmp_path_factory.mktemp("quiet"), site)
    return site


@pytest.fixture
def lab(cli: Cli, site: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line where both packages are installed."""
    monkeypatch.syspath_prepend(site)
    return cli


def check_run(cli: Cli, name: str, *options: str) -> None:
    """Train with every class of a package, read the run back in every task, and go on with it."""
    code, _, err = cli(*options, *(f"{group}={name}" for group in YAML), *SHORT)
    assert (code, Path("touched").exists(), Path("lines").exists()) == (0, True, True), err
    trained = summary()["metrics"]["test/loss"]
    code, _, err = cli("task=test", "checkpoint=run", "trainer=cpu")
    assert code == 0, err
    assert OmegaConf.load("run/test.json").metrics["test/loss"] == pytest.approx(trained, rel=1e-6)
    code, out, err = cli("task=generate", "checkpoint=run", "prompt=3+4")
    assert (code, out[:4]) == (0, "3+4="), err
    code, _, err = cli("task=export", "checkpoint=run", "output=out")
    assert (code, "parts.Scaled" in err) == (2, True), "only GPT-2's layers are exported"
    code, _, err = cli("run_dir=run", "resume=must", "trainer.max_steps=6")
    assert (code, summary()["steps"]) == (0, 6), err
    code, _, err = cli("checkpoint=run", *SHORT, "run_dir=new")
    assert code == 0, err
    content = torch.load("new/checkpoints/last.ckpt", weights_only=True)["mingpt_lightning"]
    assert (content["system"], content["tokenizer"]["name"]) == (f"{name}.parts.Squared", f"{name} digits")


def test_a_declared_package_brings_its_classes_and_configs(lab):
    check_run(lab, "lab")
    content = torch.load("run/checkpoints/last.ckpt", weights_only=True)["mingpt_lightning"]
    assert content["config"]["config_dirs"] == [], "its configs are found wherever it is installed"
    (line,) = (line for line in lab("--help")[1].splitlines() if line.startswith("  system "))
    assert line.split() == ["system", "default,", "lab"]
    assert "model.scale=4.0" in lab("model=lab", "--help")[1]


@pytest.mark.slow
def test_a_package_that_the_environment_names_is_trusted(lab, site, monkeypatch):
    monkeypatch.setenv(TRUST, "elsewhere, quiet.parts ,")
    check_run(lab, "quiet", "--config-dir", str(site / "quiet/configs"))
    monkeypatch.delenv(TRUST)
    commands = [(f"task={task}", "checkpoint=run") for task in ("test", "validate", "generate")]
    commands += [("task=export", "checkpoint=run", "output=out"), ("run_dir=run", "resume=must"), ("checkpoint=run",)]
    for command in commands:
        code, _, err = lab(*command)
        assert (code, len(err.splitlines())) == (2, 1), err
        assert "quiet.parts.Sums is not allowed" in err


@pytest.mark.parametrize("group", YAML)
def test_what_nobody_trusts_is_refused_in_a_line_that_says_how(lab, monkeypatch, site, group):
    monkeypatch.setenv(TRUST, "quie,quiet.part,quiet.parts.Other")  # a beginning of a name is no module
    code, _, err = lab("--config-dir", str(site / "quiet/configs"), f"{group}=quiet", *SHORT)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert re.search(r"error: quiet\.parts\.\w+ is not allowed", err)
    assert "entry point in the group mingpt_lightning" in err
    assert TRUST in err
    assert not Path("run").exists()


def test_what_a_trusted_package_imports_is_not_its_own(lab, monkeypatch):
    monkeypatch.setenv(TRUST, "quiet")
    for target in ("lab.parts.os.system", "quiet.parts.subprocess.run", "quiet.parts.Path", "lab.parts"):
        with pytest.raises(UserError, match=r"not allowed|cannot be found"):
            check_targets({"_target_": target}, "here")
    for target in ("lab.parts.Scaled", "quiet.parts.constant", "lab.parts.torch.optim.SGD", "lab.parts.LanguageModel"):
        check_targets({"_target_": target}, "here")


@pytest.mark.parametrize("names", ["quiet/parts", "quiet.*", "quiet..parts", "quiet;lab", "."])
def test_what_is_no_module_in_the_environment_is_named(lab, monkeypatch, names):
    monkeypatch.setenv(TRUST, names)
    code, _, err = lab("optimizer=lab", *SHORT)
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"error: '{names}' is not the name of a module ({TRUST})" in err


def test_no_config_says_what_is_trusted(lab, site):
    Path("conf/experiment").mkdir(parents=True)
    sets = f"# @package _global_\nhydra:\n  job:\n    env_set:\n      {TRUST}: quiet\noptimizer:\n"
    Path("conf/experiment/theirs.yaml").write_text(sets + "  _target_: quiet.parts.Signs\n  _partial_: true\n")
    for command in (
        ("--config-dir", "conf", "experiment=theirs", *SHORT),
        ("optimizer._target_=quiet.parts.Signs", f"+hydra.job.env_set.{TRUST}=quiet", *SHORT),
    ):
        code, _, err = lab(*command)
        assert (code, len(err.splitlines())) == (2, 1), err
        assert f"a config can't say which code is trusted: it sets {TRUST}" in err


@pytest.mark.parametrize(
    "line",
    [
        f"hydra.job.env_set.{TRUST}=quiet",
        "+hydra.callbacks.theirs._target_=os.getcwd",
        "hydra/launcher=theirs",
        "--experimental-rerun=config.pickle",
        "--config-dir=conf",
        "-m",
    ],
)
def test_a_run_folder_says_its_settings_only(lab, line):
    Path("run/.hydra").mkdir(parents=True)
    Path("run/.hydra/overrides.yaml").write_text(f"- seed=1\n- '{line}'\n")
    Path("run/.hydra/hydra.yaml").write_text("hydra: {runtime: {config_sources: []}}\n")
    code, _, err = lab("run_dir=run", "resume=auto")
    assert (code, len(err.splitlines())) == (2, 1), err
    assert f"run/.hydra/overrides.yaml has '{line}'" in err


@pytest.mark.slow
def test_a_checkpoint_makes_no_object_of_a_trusted_package(lab):
    assert lab("datamodule=lab", *SMALL, *SHORT)[0] == 0
    content = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    ours = content["mingpt_lightning"]
    makes = {"_target_": "lab.parts.write", "file": "owned"}
    text = "{_target_:lab.parts.write,file:owned}"
    crafted = {
        "the class of an object": ("tokenizer", makes),
        "an object more": ("batch_size", makes),
        "a list of them": ("tokenizer", [makes]),
        "an interpolation": ("batch_size", f"${{oc.create:{text}}}"),
        "one after a backslash": ("batch_size", f"\\${{oc.create:{text}}}"),
        "one within": ("tokenizer", {"_target_": "lab.parts.Digits", "ndigit": f"${{oc.create:{text}}}"}),
    }
    for name, (key, value) in crafted.items():
        data = {**ours["config"]["datamodule"], key: value}
        config = {**ours["config"], "datamodule": data}
        torch.save({**content, "mingpt_lightning": {**ours, "config": config}}, "copy.ckpt")
        for command in (("task=test",), ("task=generate", "prompt=3+4"), SHORT[:3]):
            code, _, err = lab("checkpoint=copy.ckpt", *command)
            assert not Path("owned").exists(), name
            if command[0] != "task=generate":  # which makes no datamodule
                assert code in (2, 3), (name, command, err)
                assert len(err.splitlines()) == 1, err


def test_a_choice_that_another_folder_hides_is_named(lab):
    Path("conf/optimizer").mkdir(parents=True)
    theirs = Path("conf/optimizer/adamw.yaml")
    theirs.write_text("_target_: torch.optim.SGD\n_partial_: true\nlr: 0.1\n")
    code, _, err = lab("--config-dir", "conf", *SHORT)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert f"optimizer=adamw is in {ROOT / 'configs'} and in {Path('conf').absolute()}" in err
    theirs.write_text((ROOT / "configs/optimizer/adamw.yaml").read_text())
    assert lab("--config-dir", "conf", "task=check", *SMALL)[0] == 0, "a copy hides nothing"

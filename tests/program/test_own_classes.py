"""A model, system or dataset of one's own, in a folder of YAML of one's own, comes back when a run is read."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

import projects
from mingpt_lightning import GPT, LanguageModel
from mingpt_lightning.errors import CheckpointError
from tests.common import ROOT, Cli, MakeGPT, MakeTrainer, summary

FILES = {
    "projects/mine/gpt.py": '''
import torch
from mingpt_lightning.gpt import GPT

class ScaledGPT(GPT):
    """Logits times a factor: as an untrained GPT they are all alike."""

    def __init__(self, vocab_size, block_size, *, scale=1.0, **sizes):
        super().__init__(vocab_size, block_size, **sizes)
        self.scale = scale

    def logits(self, hidden):
        return self.scale * super().logits(hidden)

class FewGPT(GPT):
    """One that takes few arguments."""

    def __init__(self, vocab_size, block_size, n_embd=16):
        super().__init__(vocab_size, block_size, n_layer=1, n_head=2, n_embd=n_embd)

    def logits(self, hidden):
        return -super().logits(hidden)

class Gate(torch.nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.mlp, self.gate = mlp, torch.nn.Linear(mlp.fc.in_features, mlp.fc.in_features)

    def forward(self, x):
        return self.mlp(x) * self.gate(x)

def gated(vocab_size, block_size, **sizes):
    gpt = GPT(vocab_size, block_size, **sizes)
    for block in gpt.blocks:
        block.mlp = Gate(block.mlp)
    return gpt
''',
    "projects/mine/system.py": '''
import torch
from mingpt_lightning.language_model import LanguageModel

class ZLoss(LanguageModel):
    """Adds a penalty on the logarithm of the partition function, and a weight of its own."""

    def __init__(self, gpt, optimizer=None, scheduler=None, tokenizer=None, config=None, *, z=1e-4):
        super().__init__(gpt, optimizer, scheduler, tokenizer, config)
        self.z = z
        self.extra = torch.nn.Parameter(torch.full((3,), float(z)))

    def loss_sum(self, inputs, targets):
        total, tokens = super().loss_sum(inputs, targets)
        return total + self.z * self(inputs).logsumexp(dim=-1).square().sum(), tokens
''',
    "conf/model/scaled.yaml": """
_target_: projects.mine.gpt.ScaledGPT
n_layer: 1
n_head: 2
n_embd: 16
scale: 3.0
""",
    "conf/model/few.yaml": "_target_: projects.mine.gpt.FewGPT\nn_embd: 16\n",
    "conf/model/gated.yaml": "_target_: projects.mine.gpt.gated\nn_layer: 1\nn_head: 2\nn_embd: 16\n",
    "conf/system/zloss.yaml": "_target_: projects.mine.system.ZLoss\nz: 0.01\n",
    "conf/experiment/mine.yaml": """
# @package _global_
model:
  _target_: projects.mine.gpt.ScaledGPT
  n_layer: 1
  n_head: 2
  n_embd: 16
  scale: 3.0
""",
}
CONF = ("--config-dir", "conf")
SHORT = ("trainer.max_steps=4", "trainer.val_check_interval=4", "trainer=cpu")
CHOICES = [
    ("model=scaled", "model.scale=5.0"),
    ("model=few",),
    ("model=gated",),
    ("experiment=mine",),
    ("model=scaled", "system=zloss", "system.z=0.5"),
]


@pytest.fixture
def mine(cli: Cli) -> Cli:
    """The command line in a folder with a project and YAML of one's own."""
    for name, text in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    for name in [name for name in sys.modules if f"{name}.".startswith("projects.mine.")]:
        del sys.modules[name]  # of another test, with other classes
    vars(projects).pop("mine", None)
    return cli


SLOW = [pytest.param(choice, marks=pytest.mark.slow) for choice in CHOICES[2:]]


@pytest.mark.parametrize("choice", [*CHOICES[:2], *SLOW], ids=" ".join)
def test_what_a_run_reports_of_its_own_class_every_task_finds_again(mine, choice):
    code, _, err = mine(*CONF, *choice, *SHORT, "run_dir=run")
    assert code == 0, err
    trained = summary()["metrics"]
    assert "--config-dir" not in err, "the run keeps the folder of its YAML"
    for task, split in (("validate", "val"), ("test", "test")):
        code, _, err = mine(f"task={task}", "checkpoint=run", "trainer=cpu")
        assert code == 0, err
        assert summary_of(task)[f"{split}/loss"] == pytest.approx(trained[f"{split}/loss"], rel=1e-6)
    assert mine("task=generate", "checkpoint=run", "prompt=1+1")[0] == 0
    code, _, err = mine("task=export", "checkpoint=run", "output=out")
    assert code in (0, 2)
    assert code == 0 or "projects.mine" in err
    code, _, err = mine("run_dir=run", "resume=must", "trainer.max_steps=6")
    assert code == 0, err
    assert summary()["steps"] == 6


def summary_of(task: str) -> dict[str, float]:
    import json

    return json.loads(Path("run", f"{task}.json").read_text())["metrics"]


def test_a_system_and_a_model_come_back_with_their_arguments(mine):
    choice = ("model=scaled", "model.scale=5.0", "system=zloss", "system.z=0.5")
    assert mine(*CONF, *choice, *SHORT, "run_dir=run")[0] == 0
    from projects.mine.gpt import ScaledGPT  # type: ignore[import-not-found]
    from projects.mine.system import ZLoss  # type: ignore[import-not-found]

    system = ZLoss.load_from_checkpoint("run", gpt=ScaledGPT)
    assert (system.z, system.gpt.scale, system.extra.tolist()) == (0.5, 5.0, [0.5] * 3)
    assert ZLoss.load_from_checkpoint("run", gpt=ScaledGPT, z=0.25).z == 0.25
    for read, lacks in (
        (lambda: LanguageModel.load_from_checkpoint("run"), "has projects.mine.gpt.ScaledGPT"),
        (lambda: LanguageModel.load_from_checkpoint("run", gpt=ScaledGPT), "of the system projects.mine.system.ZLoss"),
    ):
        with pytest.raises(CheckpointError, match=lacks):
            read()


def test_the_classes_of_extending_train_and_come_back(mine):
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    for name in ("gpt", "system"):
        (code,) = re.findall(rf"```python\n# projects/mine/{name}.py\n(.*?)```", page, re.DOTALL)
        Path("projects/mine", f"{name}.py").write_text(code)
    for group, target in (("model", "mine.gpt"), ("system", "mine.system")):
        (yaml,) = re.findall(
            rf"```yaml\n# configs/{group}/mine.yaml\n(_target_: projects.{target}.*?)```", page, re.DOTALL
        )
        Path(f"conf/{group}/mine.yaml").write_text(yaml)
    code, _, err = mine(*CONF, "model=mine", "system=mine", *SHORT, "run_dir=run")
    assert code == 0, err
    trained = summary()["metrics"]["test/loss"]
    assert mine("task=test", "checkpoint=run", "trainer=cpu")[0] == 0
    assert summary_of("test")["test/loss"] == pytest.approx(trained, rel=1e-6)


def test_a_class_that_only_the_command_line_or_the_file_names_is_refused(mine):
    own = ("model._target_=projects.mine.gpt.ScaledGPT", *SHORT)
    code, _, err = mine(*own, "run_dir=run")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "configs/model/NAME.yaml" in err
    assert not Path("run").exists()
    assert mine(*CONF, "model=scaled", *SHORT, "run_dir=run")[0] == 0
    Path("conf/model/scaled.yaml").write_text("_target_: mingpt_lightning.gpt.GPT\nn_layer: 1\nn_head: 2\nn_embd: 16\n")
    for task in ("test", "generate", "export"):
        code, _, err = mine(f"task={task}", "checkpoint=run", *(("output=out",) if task == "export" else ()))
        assert (code, len(err.splitlines())) == (3, 1)
        assert "was trained with projects.mine.gpt.ScaledGPT, and model=scaled is mingpt_lightning.gpt.GPT" in err
    Path("conf/model/scaled.yaml").unlink()
    code, _, err = mine("task=test", "checkpoint=run")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "model=scaled does not exist" in err
    shutil.rmtree("conf")
    code, _, err = mine("task=test", "checkpoint=run")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "--config-dir" in err


def test_a_notebooks_own_class_is_named_when_it_is_missing(
    make_gpt: MakeGPT, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    class Doubled(GPT):
        def __init__(self, *sizes: int, times: float = 2.0, **more: int):
            super().__init__(*sizes, **more)
            self.times = times

    trainer = make_trainer(max_steps=1)
    trainer.strategy.connect(LanguageModel(Doubled(11, 8, n_layer=1, n_head=2, n_embd=16, times=3.0)))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(CheckpointError, match=r"has .*Doubled"):
        LanguageModel.load_from_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(CheckpointError, match="does not say which times"):
        LanguageModel.load_from_checkpoint(tmp_path / "own.ckpt", gpt=Doubled)
    loaded = LanguageModel.load_from_checkpoint(tmp_path / "own.ckpt", gpt=lambda **sizes: Doubled(times=3.0, **sizes))
    assert loaded.gpt.times == 3.0


def test_hyperparameters_that_lightning_saves_come_back(
    make_gpt: MakeGPT, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    class Focal(LanguageModel):
        def __init__(self, gpt: GPT, *arguments: object, gamma: float = 2.0, **more: object):
            super().__init__(gpt, *arguments, **more)  # type: ignore[arg-type]
            self.gamma = gamma
            self.save_hyperparameters(ignore=["gpt"])

    trainer = make_trainer(max_steps=1)
    trainer.strategy.connect(Focal(make_gpt(), print, gamma=3.0))  # a function, which is no plain data
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    assert torch.load(tmp_path / "own.ckpt", weights_only=True)["hyper_parameters"] == {"gamma": 3.0}
    assert Focal.load_from_checkpoint(tmp_path / "own.ckpt").gamma == 3.0


def test_a_run_goes_on_by_its_folder_alone(cli):
    given = ("datamodule=sort", "model.n_layer=1", "model.n_head=2", "model.n_embd=16", "optimizer=sgd", "seed=3")
    assert cli(*given, *SHORT, "run_dir=run")[0] == 0
    code, _, err = cli("run_dir=run", "resume=auto", "trainer.max_steps=6")
    assert code == 0, err
    assert "changed     trainer.max_steps: 4 in the checkpoint, 6 now" in err
    assert summary()["steps"] == 6
    code, _, err = cli("run_dir=run", "resume=must", "trainer=auto", "datamodule.length=4")
    assert code == 3
    assert "datamodule.length: 6 in the checkpoint, 4 now" in err, "what is given on top is compared"
    code, _, err = cli("run_dir=run", "resume=must")
    assert (code, summary()["steps"]) == (0, 6), "the settings of the last time are the run's own"
    code, _, err = cli("run_dir=other", "resume=auto", *SHORT)
    assert (code, "datamodule" in Path("other/.hydra/overrides.yaml").read_text()) == (0, False), "none are there"


def test_a_job_of_a_sweep_goes_on_by_its_folder_alone(cli):
    assert cli("-m", "datamodule=sort", "model=gpt-nano", "seed=1,2", *SHORT, "run_dir=sweep")[0] == 0
    assert cli("run_dir=sweep/1", "resume=must", "trainer.max_steps=5")[0] == 0
    assert summary("sweep/1")["steps"] == 5
    assert "seed=2" in Path("sweep/1/.hydra/overrides.yaml").read_text()


def test_the_data_of_a_checkpoint_are_keys_of_the_command_line(cli):
    Path("book.txt").write_text("the cat sat on the mat. " * 100)
    text = ("datamodule=chargpt", "datamodule.path=book.txt", "datamodule.block_size=8")
    assert cli(*text, "model.n_layer=1", "model.n_head=2", "model.n_embd=16", *SHORT, "run_dir=run")[0] == 0
    Path("moved").mkdir()
    Path("book.txt").rename("moved/other.txt")
    code, _, err = cli("task=test", "checkpoint=run")
    assert code == 2
    assert "book.txt" in err
    code, _, err = cli("task=test", "checkpoint=run", "datamodule.path=moved/other.txt")
    assert code == 0, err
    shutil.copy("run/checkpoints/best.ckpt", "copy.ckpt")
    code, _, err = cli("task=test", "checkpoint=copy.ckpt", f"datamodule.path={os.path.abspath('moved/other.txt')}")
    assert code == 0, err
    code, _, err = cli("task=test", "checkpoint=run", "datamodule.pth=moved/other.txt")
    assert code == 2
    assert "Did you mean 'path'?" in err


def test_a_new_run_from_a_checkpoint_takes_its_model_and_data(cli):
    nano = ("model=gpt-nano", "model.n_layer=2", "datamodule=sort", "datamodule.length=4")
    assert cli(*nano, *SHORT, "run_dir=run")[0] == 0
    code, _, err = cli("checkpoint=run", "run_dir=new", *SHORT)
    assert code == 0, err
    assert "weights     run/checkpoints/best.ckpt" in err
    code, _, err = cli("checkpoint=run", "run_dir=third", "model.n_layer=3", *SHORT)
    assert code == 3
    assert "n_layer: 2 in the checkpoint, 3 now" in err

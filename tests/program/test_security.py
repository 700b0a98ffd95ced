"""No config value and no checkpoint can run code."""

import pytest
import torch
from omegaconf import OmegaConf

from mingpt_lightning.cli.build import build, check_targets
from mingpt_lightning.errors import UserError
from tests.common import ROOT, SMALL

REFUSED = [
    "os.system",
    "builtins.eval",
    "subprocess.run",
    "torch.load",
    "torch.hub.load",
    "mingpt_lightning.storage.os.system",
    "mingpt_lightning.storage.torch.load",
    "mingpt_lightning.cli.fit.shutil.which",
    "projects.adder.datamodule.np.load",
    "projects.adder.datamodule.np",
    "torch.optim.lr_scheduler.warnings.warn",
    "pytorch_lightning.utilities.cloud_io._load",
    "pytorch_lightning.callbacks.model_checkpoint.torch.load",
    "mingpt_lightning",
    "mingpt_lightning.gpt",
    "mingpt_lightning.nothing.Here",
    "mingpt_lightningx.gpt.GPT",
    "projects..adder",
    "",
    5,
    ["os.system"],
]


@pytest.mark.parametrize("target", REFUSED, ids=map(str, REFUSED))
@pytest.mark.parametrize("deep", [False, True])
def test_a_target_off_the_list_is_refused(target, deep):
    node = {"_target_": target}
    if deep:
        node = {"_target_": "torch.optim.AdamW", "lr": 0.1, "more": [{"inner": node}]}
    with pytest.raises(UserError, match=r"not allowed|cannot be found"):
        build(OmegaConf.create(node), "here")


def test_the_targets_of_our_configs_and_the_usual_others_are_known():
    for file in (ROOT / "configs").rglob("*.yaml"):
        content = OmegaConf.to_container(OmegaConf.load(file))
        if "_target_: hydra" in file.read_text() or file.name == "config.yaml" or file.stem in ("wandb", "tensorboard"):
            continue
        check_targets(content, file.name)
    for target in (
        "torch.optim.SGD",
        "pytorch_lightning.callbacks.ModelCheckpoint",
        "pytorch_lightning.loggers.CSVLogger",
        "pytorch_lightning.strategies.DDPStrategy",
        "pytorch_lightning.profilers.SimpleProfiler",
    ):
        check_targets({"_target_": target}, "here")


def test_hydras_own_ways_to_run_code_are_refused(cli):
    for arguments in (
        ("hydra.callbacks.sweep_table._target_=os.getcwd",),
        ("+hydra.callbacks.mine._target_=os.getcwd",),
        ("hydra.launcher._target_=subprocess.run",),
        ("--experimental-rerun", "config.pickle"),
        ("--experimental-rerun=config.pickle",),
    ):
        code, _, err = cli(*arguments)
        assert code == 2
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1


def test_a_checkpoint_that_names_classes_makes_none(cli):
    assert cli(*SMALL, "trainer.max_steps=2", "run_dir=run")[0] == 0
    content = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    ours = content["mingpt_lightning"]
    for section in ("datamodule", "model", "system"):
        config = {**ours["config"], section: {**ours["config"][section], "_target_": "os.system"}}
        torch.save({**content, "mingpt_lightning": {**ours, "config": config}}, "copy.ckpt")
        code, out, err = cli("task=generate", "checkpoint=copy.ckpt", "prompt=1+1")
        assert (code, out, len(err.splitlines())) == (3, "", 1)
        assert "was trained with os.system" in err
    for key, value in (("gpt", {"_target_": "os.system"}), ("tokenizer", {"name": "os", "arguments": {}}), ("gpt", 3)):
        torch.save({**content, "mingpt_lightning": {**ours, key: value}}, "bad.ckpt")
        code, _, err = cli("task=generate", "checkpoint=bad.ckpt", "prompt=1+1")
        assert code == 3, (key, value, err)
        assert len(err.splitlines()) == 1
    huge = {**ours["gpt"], "n_layer": 10**6, "n_embd": 2**20}
    torch.save({**content, "mingpt_lightning": {**ours, "gpt": huge}}, "huge.ckpt")
    code, _, err = cli("task=generate", "checkpoint=huge.ckpt", "prompt=1+1")
    assert code == 3
    assert "do not fit" in err
    torch.save({**content, "mingpt_lightning": {**ours, "format": 99, "version": "9.0"}}, "new.ckpt")
    code, _, err = cli("task=generate", "checkpoint=new.ckpt", "prompt=1+1")
    assert code == 3
    assert "has format 99, of version 9.0" in err

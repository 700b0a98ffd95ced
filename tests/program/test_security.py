"""No file and no config value that is read can run code."""

import ast
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from mingpt_lightning.build import build, check_targets
from mingpt_lightning.errors import UserError
from tests.common import ROOT

SOURCES = [*ROOT.glob("*.py"), *ROOT.glob("mingpt_lightning/*.py"), *ROOT.glob("projects/**/*.py")]
UNSAFE = {"eval", "exec", "pickle.load", "pickle.loads", "dill.load", "yaml.load", "yaml.unsafe_load", "os.system"}
NEEDS_WEIGHTS_ONLY = {"torch.load", "trainer.fit", "trainer.validate", "trainer.test"}


def calls(path: Path) -> list[tuple[str, dict[str, str]]]:
    """The name and the keyword arguments of every call in a file."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    found = [node for node in nodes if isinstance(node, ast.Call)]
    return [(ast.unparse(n.func), {str(k.arg): ast.unparse(k.value) for k in n.keywords}) for n in found]


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_nothing_is_loaded_that_could_run(path):
    for name, keywords in calls(path):
        assert name not in UNSAFE, f"{path.name} calls {name}"
        assert "allow_pickle" not in keywords
        if name in NEEDS_WEIGHTS_ONLY and (name == "torch.load" or "ckpt_path" in keywords):
            assert keywords.get("weights_only") == "True", f"{path.name}: {name}"


REFUSED = [
    "os.system",
    "builtins.eval",
    "subprocess.run",
    "torch.load",
    "torch.hub.load",
    "mingpt_lightning.storage.os.system",
    "mingpt_lightning.storage.torch.load",
    "mingpt_lightning.tasks.shutil.rmtree",
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
    tiny = ("model.n_layer=1", "model.n_head=2", "model.n_embd=16", "trainer.max_steps=2")
    assert cli(*tiny, "run_dir=run")[0] == 0
    content = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    ours = content["mingpt_lightning"]
    ours["config"]["datamodule"]["_target_"] = "os.system"
    ours["config"]["model"]["_target_"] = "os.system"
    torch.save(content, "copy.ckpt")
    code, out, err = cli("task=generate", "checkpoint=copy.ckpt", "prompt=1+1")
    assert (code, out[:4]) == (0, "1+1="), err
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

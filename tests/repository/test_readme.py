"""Every command of README and docs can be typed as it stands, and their Python runs."""

import re
import shlex

import pytest

from mingpt_lightning import Tokenizer
from mingpt_lightning.bpe import BPETokenizer
from mingpt_lightning.cli.overrides import quoted
from tests.common import ROOT, choices

README = ROOT / "README.md"
PAGES = [README, *ROOT.glob("docs/*.md"), *ROOT.glob("projects/*/README.md")]
OWN = {"model=mine", "datamodule=parity", "experiment=mine"}  # choices that the pages tell how to make


def text_of(page):
    return page.read_text(encoding="utf-8")


def commands() -> list[str]:
    """The commands of all pages, placeholders filled in."""
    found = {c for page in PAGES for c in re.findall(r"python main\.py[^`\n]*", text_of(page))}
    return sorted(command.rstrip(")") for command in found if "-sc" not in command)


@pytest.mark.parametrize("command", commands())
def test_commands_compose(config, command):
    arguments = [quoted(word) for word in shlex.split(command, comments=True)[2:]]
    if "--help" in arguments:
        return
    if "-m" in arguments:
        arguments = [word.split(",")[0] for word in arguments if word != "-m"]
    cfg = config(*[word for word in arguments if word not in OWN])
    assert cfg.task in choices("task")


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), re.DOTALL)


def test_the_architecture_names_every_module():
    tree = text_of(ROOT / "docs/architecture.md")
    for path in (ROOT / "mingpt_lightning").rglob("[!_]*.py"):
        assert f"    {path.name} " in tree, path.name


def test_links_and_pictures_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", text_of(page)):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_is_short():
    assert len(text_of(README).split()) <= 1350


def test_the_python_of_generation_runs(make_gpt, tmp_path, capsys):
    (block,) = (block for block in blocks(ROOT / "docs/generation.md", "python") if "from_pretrained" in block)
    tokenizer = BPETokenizer.train([block], 300)
    make_gpt(tokenizer.vocab_size, block_size=32).save_pretrained(tmp_path, tokenizer)
    exec(block.replace('"gpt2"', repr(str(tmp_path))), {})
    assert "piece" in capsys.readouterr().out


def test_the_dataset_of_readme_trains(cli, monkeypatch, tmp_path):
    """The file as it stands, in a package beside ours; its YAML in a folder of configs."""
    (code,) = (block for block in blocks(README, "python") if "class ParityDataModule" in block)
    (config,) = (block for block in blocks(README, "yaml") if "ParityDataModule" in block)
    package = tmp_path / "projects" / "parity"
    package.mkdir(parents=True)
    (package / "datamodule.py").write_text(code)
    monkeypatch.setattr(Tokenizer, "registry", dict(Tokenizer.registry))
    (tmp_path / "conf/datamodule").mkdir(parents=True)
    (tmp_path / "conf/datamodule/parity.yaml").write_text(config)
    tiny = ("model.n_layer=1", "trainer.max_steps=20", "trainer.val_check_interval=10")
    status, _, err = cli("--config-dir", str(tmp_path / "conf"), "datamodule=parity", "run_dir=run", *tiny)
    assert status == 0, err
    assert "test exact match" in err
    assert "data        parity: 824 train, 100 val, 100 test sequences of 19 tokens" in err

"""Every command of README can be typed as it stands, and its Python runs."""

import re
import shlex

import pytest

from mingpt_lightning.bpe import BPETokenizer
from mingpt_lightning.cli.main import quoted
from tests.common import ROOT, choices


def commands() -> list[str]:
    """The commands of README and of the projects' pages, placeholders filled in."""
    pages = [ROOT / "README.md", *ROOT.glob("projects/*/README.md")]
    found = {c for page in pages for c in re.findall(r"python main\.py[^`\n]*", page.read_text(encoding="utf-8"))}
    return sorted(command.rstrip(")") for command in found if "-sc" not in command)


@pytest.mark.parametrize("command", commands())
def test_readme_commands_compose(config, command):
    arguments = [quoted(word) for word in shlex.split(command, comments=True)[2:]]
    if "--help" in arguments:
        return
    if "-m" in arguments:
        arguments = [word.split(",")[0] for word in arguments if word != "-m"]
    known = set(choices("task"))
    cfg = config(*[word for word in arguments if word != "model=mine"])
    assert cfg.task in known


def test_readme_names_every_module():
    tree = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "mingpt_lightning").glob("[!_]*.py"):
        assert f"    {path.name} " in tree, path.name


def test_readme_python_of_generation_runs(make_gpt, tmp_path, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (block,) = (block for block in blocks if "from_pretrained" in block)
    tokenizer = BPETokenizer.train([block], 300)
    make_gpt(tokenizer.vocab_size, block_size=32).save_pretrained(tmp_path, tokenizer)
    exec(block.replace('"gpt2"', repr(str(tmp_path))), {})
    assert "piece" in capsys.readouterr().out

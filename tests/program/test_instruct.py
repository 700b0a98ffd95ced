"""datamodule=instruct on the command line: trained, resumed to the bit, asked; and the questions that it ships with."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from mingpt_lightning import LanguageModel
from mingpt_lightning.cli.overrides import quoted, split
from projects.instruct.examples import QUESTIONS
from tests.common import TINY, Cli, log_of, same

ROWS = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
DATA = (
    "datamodule=instruct",
    "datamodule.path=chats.jsonl",
    "datamodule.batch_size=4",
    "datamodule.vocab_size=300",
    "scheduler=constant",
)


@pytest.fixture
def chats(cli: Cli) -> None:
    rows = [{"prompt": f"what is {n}?" + "?" * (n % 90), "completion": f"it is {n * n}"} for n in range(100)]
    Path("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.usefixtures("chats")
def test_it_trains_resumes_to_the_bit_and_answers(cli: Cli) -> None:
    code, _, err = cli(*DATA, *TINY, "run_dir=whole")
    assert code == 0, err
    assert "instruct: 90 train, 5 val, 5 test sequences of up to 256 tokens" in err
    assert cli(*DATA, *TINY, "run_dir=run", "trainer.max_steps=3")[0] == 0
    assert cli(*DATA, *TINY, "run_dir=run", "resume=must", "trainer.max_steps=6")[0] == 0
    whole, run = (torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("whole", "run"))
    assert same(whole["state_dict"], run["state_dict"])
    assert log_of("whole")[-1] == log_of("run")[-1]
    code, out, err = cli("task=generate", "checkpoint=run", "chat=true", "prompt=what is 3?", "max_new_tokens=5")
    assert (code, err) == (0, "")
    assert "what is" not in out.splitlines()[0][:7]
    assert cli("task=test", "checkpoint=run", "run_dir=tested")[0] == 0
    system = LanguageModel.load_from_checkpoint("run")
    assert system.tokenizer is not None
    assert cli("task=export", "checkpoint=run", "output=folder")[0] == 0
    more = ("datamodule.tokenizer=folder", "model=gpt2-pretrained", "model.name=folder", "run_dir=more")
    assert cli(*DATA, *(item for item in TINY if item.startswith("trainer.")), *more)[0] == 0


@pytest.mark.usefixtures("chats")
def test_a_run_starts_from_another_in_its_vocabulary(cli: Cli) -> None:
    assert cli(*DATA, *TINY, "run_dir=run")[0] == 0
    Path("other.jsonl").write_text('{"prompt": "é", "completion": "ü"}\n' * 3)
    code, _, err = cli(*DATA, *TINY, "checkpoint=run", "datamodule.path=other.jsonl", "datamodule.split=[1,0,0]",
                       "run_dir=next", "trainer.limit_val_batches=0")  # fmt: skip
    assert code == 0, err


def composes(config: Callable[..., DictConfig], command: str) -> None:
    arguments = shlex.split(command)[2:]
    if "--help" not in arguments:
        if "-m" in arguments:
            pairs = [word.partition("=") for word in arguments if word != "-m"]
            arguments = [f"{key}={next(split(value))}" for key, _, value in pairs]
        config(*map(quoted, arguments))


def test_the_questions_are_different_and_the_answers_are_commands(config: Callable[..., DictConfig]) -> None:
    assert len({row["prompt"] for row in ROWS}) == len(ROWS) == 300
    for row in ROWS[::15]:
        composes(config, row["completion"])


@pytest.mark.slow
def test_every_answer_is_a_command_that_composes(config: Callable[..., DictConfig]) -> None:
    for row in ROWS:
        assert row["completion"].startswith("python main.py")
        composes(config, row["completion"])

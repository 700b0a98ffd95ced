"""task=export, and transformers reads what it writes."""

from pathlib import Path

import pytest
import torch

from mingpt_lightning import GPT, CharTokenizer, LanguageModel
from tests.common import CHARS, PRETRAINED, SMALL, Cli

FIT = (*SMALL, "trainer.max_steps=2", "trainer.val_check_interval=1")


@pytest.mark.usefixtures("book")
def test_a_run_is_exported_and_read_again(cli: Cli) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert cli("run_dir=run", *CHARS, "datamodule.path=book.txt", *FIT)[0] == 0
    assert cli("task=export", "checkpoint=run", "output=folder")[:2] == (0, "")
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained("folder"), AutoTokenizer.from_pretrained("folder")
    system = LanguageModel.load_from_checkpoint("run")
    assert isinstance(system.tokenizer, CharTokenizer)
    tokens = torch.tensor([tokenizer("the cat\n").input_ids])
    assert tokens.tolist() == [system.tokenizer.encode("the cat\n")]
    torch.testing.assert_close(theirs(tokens).logits, system.gpt(tokens), atol=1e-5, rtol=0)
    text = cli("task=generate", "checkpoint=run", "prompt=the cat", "max_new_tokens=9")[1]
    assert cli("task=generate", PRETRAINED[0], "model.name=folder", "prompt=the cat", "max_new_tokens=9")[1] == text
    code, _, err = cli("task=export", "checkpoint=run", "output=folder")
    assert code == 2
    assert "folder is not an empty folder" in err
    assert cli("task=export", "checkpoint=run")[0] == 2


def test_the_adder_is_exported_without_a_tokenizer(cli: Cli) -> None:
    assert cli("run_dir=run", *FIT)[0] == 0
    assert cli("task=export", "checkpoint=run", "output=folder")[0] == 0
    assert not Path("folder/tokenizer.json").exists()
    assert GPT.from_pretrained("folder").config["vocab_size"] == 10

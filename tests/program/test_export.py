"""task=export, and transformers reads what it writes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mingpt_lightning import GPT, CharTokenizer, LanguageModel
from tests.common import CHARS, PRETRAINED, SMALL, Cli, MakeGPT

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


def test_a_checkpoint_of_another_program_becomes_a_folder(cli: Cli, make_gpt: MakeGPT) -> None:
    gpt = make_gpt(60, block_size=16, n_layer=2, n_head=3, n_embd=48)
    gpt.save_pretrained("gpt2")
    state = {
        name: weight.T.contiguous() if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else weight
        for name, weight in load_file("gpt2/model.safetensors").items()
    }
    torch.save(state | {"lm_head.weight": torch.zeros(60, 48)}, "model.pt")
    code, _, err = cli("task=export", "checkpoint=model.pt", "output=out")
    assert code == 0, err
    assert "note: model.pt is read as the weights of minGPT" in err
    assert "exported    out, without a tokenizer: the file has none" in err
    assert json.loads(Path("out/config.json").read_text())["tie_word_embeddings"] is False
    tokens = torch.arange(12)[None]
    assert GPT.from_pretrained("out").hidden(tokens).equal(GPT.from_pretrained("gpt2").hidden(tokens))
    for task in ("generate", "test"):
        code, _, err = cli(f"task={task}", "checkpoint=model.pt")
        assert (code, len(err.splitlines())) == (3, 1), err
        assert "bare weights (a state_dict)" in err
        assert "task=export" in err
    code, _, err = cli("task=generate", "checkpoint=gpt2/model.safetensors")
    assert (code, "Use model=gpt2-pretrained model.name=gpt2." in err) == (3, True), err


@pytest.mark.parametrize(
    ("before", "option", "after"),
    [("float16", "auto", "float16"), ("float32", "auto", "float32"), ("float16", "float32", "float32"),
     ("float32", "bfloat16", "bfloat16")],
)  # fmt: skip
def test_the_dtype_of_an_export(cli: Cli, make_gpt: MakeGPT, before: str, option: str, after: str) -> None:
    make_gpt(60).to(getattr(torch, before)).save_pretrained("in", CharTokenizer("".join(map(chr, range(40, 100)))))
    code, _, err = cli("task=export", "model=gpt2-pretrained", "model.name=in", f"dtype={option}", "output=out")
    assert code == 0, err
    assert {str(weight.dtype) for weight in load_file("out/model.safetensors").values()} == {f"torch.{after}"}
    assert json.loads(Path("out/config.json").read_text())["dtype"] == after
    code, _, err = cli("task=export", "model=gpt2-pretrained", "model.name=in", "dtype=float63", "output=more")
    assert (code, "Did you mean 'float32'" in err) == (2, True)

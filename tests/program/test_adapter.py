"""adapter=lora: what is trained and saved, exact resume, generation, export merged and in peft's format."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from mingpt_lightning import GPT, BPETokenizer, LanguageModel
from mingpt_lightning.adapter import adapter_of, fingerprint
from tests.common import PRETRAINED, TINY, Cli, MakeGPT, log_of, same, summary

STEPS = [item for item in TINY if item.startswith("trainer.")]
DATA = (
    *("datamodule=text", "datamodule.path=book.txt", "datamodule.tokenizer=gpt", "datamodule.block_size=16"),
    *("trainer.accelerator=cpu", "scheduler=constant", "optimizer.lr=1e-2", "model.dropout=0.1"),
)
LORA = (*DATA, *PRETRAINED, *STEPS, "adapter=lora", "adapter.r=2", "adapter.dropout=0.1")

pytestmark = [
    pytest.mark.usefixtures("model", "book"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # peft 0.21
]


def read(file: str) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)["state_dict"]


def test_only_the_adapter_is_trained_and_saved_and_a_run_goes_on_to_the_bit(cli: Cli) -> None:
    code, _, err = cli(*LORA, "run_dir=whole")
    assert code == 0, err
    assert "adapter     " in err
    weights = read("whole/checkpoints/last.ckpt")
    assert {name.split(".")[-3] for name in weights} == {"lora_A", "lora_B"}
    assert any(weight.any() for name, weight in weights.items() if "lora_B" in name)
    assert cli(*LORA, "run_dir=run", "trainer.max_steps=3")[0] == 0
    assert cli(*LORA, "run_dir=run", "resume=must")[0] == 0
    assert same(weights, read("run/checkpoints/last.ckpt"))
    assert log_of("whole")[-1] == log_of("run")[-1]
    code, _, err = cli(*LORA, "run_dir=run", "resume=must", "adapter.r=4")
    assert (code, err.count("\n")) == (3, 1)
    assert "r: 2 in the checkpoint, 4 now" in err


def test_the_base_stays_as_it_is_and_what_is_tested_is_generated_and_exported(
    cli: Cli, model: tuple[GPT, BPETokenizer]
) -> None:
    assert cli(*LORA, "run_dir=run")[0] == 0
    system = LanguageModel.load_from_checkpoint("run/checkpoints/last.ckpt")
    found = adapter_of(system.gpt)
    assert found is not None
    assert found["base"]["fingerprint"] == fingerprint(model[0])
    tokens = torch.arange(48).view(3, 16) % model[0].config["vocab_size"]
    logits = system.gpt(tokens)
    assert not torch.allclose(logits, model[0](tokens), atol=1e-3)
    last = "checkpoint=run/checkpoints/last.ckpt"
    assert cli("task=export", last, "output=merged")[0] == 0
    torch.testing.assert_close(GPT.from_pretrained("merged")(tokens), logits, atol=1e-4, rtol=1e-4)
    code, _, err = cli("task=export", last, "output=peft", "merge=false")
    assert (code, "an adapter in peft's format" in err) == (0, True)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("gpt"), "peft").eval()
    torch.testing.assert_close(theirs(tokens).logits, logits, atol=1e-4, rtol=1e-4)
    greedy = ("prompt=the cat", "temperature=0", "max_new_tokens=10", "dtype=float32")
    outputs = [cli("task=generate", *which, *greedy)[:2] for which in ((last,), (*PRETRAINED[:1], "model.name=merged"))]
    assert outputs[0] == outputs[1]
    assert cli("task=test", "checkpoint=run", "run_dir=again")[0] == 0
    assert summary("again")["metrics"]["test/loss"] == pytest.approx(summary("run")["metrics"]["test/loss"], abs=1e-6)


def test_a_run_of_ones_own_is_adapted_and_an_adapter_is_trained_on_or_merged(cli: Cli) -> None:
    whole = (*DATA, *PRETRAINED, *STEPS)
    assert cli(*whole, "run_dir=base")[0] == 0
    own = (*DATA, *STEPS, "checkpoint=base", *PRETRAINED)
    assert cli(*own, "adapter=lora", "run_dir=run")[0] == 0
    assert adapter_of(LanguageModel.load_from_checkpoint("run").gpt)["base"]["checkpoint"].endswith("best.ckpt")  # type: ignore[index]
    assert cli(*DATA, *STEPS, *PRETRAINED, "checkpoint=run", "adapter=lora", "run_dir=more")[0] == 0
    assert cli("task=generate", "checkpoint=more", "prompt=the")[0] == 0
    assert cli(*DATA, *STEPS, *PRETRAINED, "checkpoint=run", "run_dir=all")[0] == 0
    assert "gpt.blocks.0.attn.qkv.weight" in read("all/checkpoints/best.ckpt"), "without adapter= it is merged"


def test_a_base_that_has_changed_or_is_gone_is_named(
    cli: Cli, make_gpt: MakeGPT, model: tuple[GPT, BPETokenizer]
) -> None:
    assert cli(*LORA, "run_dir=run")[0] == 0
    shutil.rmtree("gpt")
    code, _, err = cli("task=generate", "checkpoint=run", "prompt=the")
    assert (code, err.count("\n")) == (3, 1)
    assert "the base of the checkpoint's adapter can't be read: " in err
    make_gpt(model[1].vocab_size, block_size=32, seed=1).save_pretrained("gpt", model[1])
    code, _, err = cli("task=generate", "checkpoint=run", "prompt=the")
    assert (code, err.count("\n")) == (3, 1)
    assert "are not those that the checkpoint's adapter was trained on" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("model=gpt-nano",), "an adapter needs weights that it adapts (adapter). Choose a pretrained model"),
        (("adapter.r=0",), "adapter.r"),
        (("adapter.alpha=-1",), "adapter.alpha"),
        (("adapter.dropout=1",), "dropout=1 is not in [0, 1) (adapter.dropout)"),
        (("adapter.target_modules=[qkv,head]",), "target_modules has head (adapter.target_modules)"),
        (("adapter.target_modules=[]",), "adapter.target_modules"),
    ],
)
def test_what_cannot_be_adapted_is_one_line(cli: Cli, arguments: tuple[str, ...], words: str) -> None:
    own = [item for item in LORA if not (arguments[0].startswith("model=") and item.startswith("model"))]
    code, _, err = cli(*own, *arguments, "run_dir=run")
    assert (code, err.count("\n")) == (2, 1), err
    assert words in err
    assert not Path("run").exists()


def test_new_tokens_are_refused(cli: Cli) -> None:
    more = ("datamodule.tokenizer=null", "datamodule.vocab_size=300")
    Path("book.txt").write_text("".join(f"{n} is a number.\n" for n in range(2000)))
    code, _, err = cli(*LORA, *more, "run_dir=run")
    assert (code, err.count("\n")) == (2, 1), err
    assert "an adapter learns no new ones" in err


def test_check_and_averages_take_an_adapter(cli: Cli) -> None:
    code, _, err = cli("task=check", *LORA, "adapter.dropout=0", "model.dropout=0")
    assert code in (0, 2), err
    assert "gradient" not in "".join(line for line in err.splitlines() if " off " in line)
    code, _, err = cli(*LORA, "callbacks=ema", "run_dir=run")
    assert code == 0, err
    assert json.loads(Path("run/summary.json").read_text())["metrics"]["test/loss"] > 0

"""An adapter in peft's format is for a base that transformers has."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mingpt_lightning import GPT, UserError
from mingpt_lightning.adapter import add_lora, save_adapter

pytest.importorskip("peft")
SIZES = {"vocab_size": 60, "block_size": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}
LLAMA = {"mlp": "gated", "norm": "rmsnorm", "position": "rotary", "bias": False, "activation": "silu"}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft 0.21
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"norm_order": "post"}, LLAMA], ids=str)
def test_peft_computes_with_the_base_and_the_adapter_that_we_write(options: dict[str, Any], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    gpt = GPT(**SIZES, **options)  # type: ignore[arg-type]
    gpt.save_pretrained(tmp_path / "base")
    add_lora(gpt, r=2).eval()
    with torch.no_grad():
        for weight in gpt.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.2)
    save_adapter(gpt, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    tokens = torch.randint(60, (3, 24))
    torch.testing.assert_close(gpt(tokens), theirs.eval()(tokens).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": "rotary"}, "transformers' GPT-2 has no position=rotary"),
        (LLAMA | {"logit_softcap": 15.0}, "transformers' Llama has no logit_softcap=15.0"),
        (LLAMA | {"bias": True}, "transformers' Llama has no bias=True"),
        ({}, "transformers has no torch.nn.modules.activation.Tanh"),
    ],
    ids=str,
)
def test_an_adapter_that_no_base_has_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    gpt = GPT(**SIZES, **options)  # type: ignore[arg-type]
    if not options:
        gpt.blocks[0].mlp.activation = nn.Tanh()  # type: ignore[union-attr]
    with pytest.raises(UserError, match=message) as caught:
        save_adapter(add_lora(gpt), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()

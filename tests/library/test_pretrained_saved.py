"""Pretrained: transformers computes with what we write what we compute."""

import logging
import resource
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from mingpt_lightning import GPT, CharTokenizer, UserError
from mingpt_lightning.bpe import BPETokenizer
from mingpt_lightning.errors import ResourceError
from mingpt_lightning.tokenizer import Tokenizer
from tests.gpt2_files import compare


@pytest.fixture
def quiet() -> Iterator[list[str]]:
    """Asserts that transformers warns of nothing meanwhile."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    yield messages
    logging.getLogger("transformers").removeHandler(handler)
    assert messages == []


def test_the_fixture_hears_transformers(quiet: list[str]) -> None:
    logging.getLogger("transformers.modeling_utils").warning("a test")
    assert quiet.pop() == "a test"


def make_gpt(**options: Any) -> GPT:
    """A GPT with no weight that is trivially 0 or 1."""
    gpt = GPT(**{"vocab_size": 61, "block_size": 24, "n_layer": 2, "n_head": 4, "n_embd": 32} | options).eval()
    with torch.no_grad():
        for weight in gpt.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return gpt


OPTIONS: list[dict[str, Any]] = [
    {},
    {"dropout": 0.2},
    {"dropout": [0.1, 0.2, 0.3]},
    {"n_inner": 40, "norm_eps": 1e-3},
    *({"activation": name} for name in ("gelu", "relu", "silu")),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_we_write_transformers_computes_alike(tmp_path: Path, quiet: list[str], options: dict[str, Any]) -> None:
    gpt = make_gpt(**options)
    gpt.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(theirs) is GPT2LMHeadModel
    compare(gpt, theirs)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    if options.get("dropout"):
        rates = options["dropout"] if isinstance(options["dropout"], list) else [0.2] * 3
        assert [theirs.config.embd_pdrop, theirs.config.attn_pdrop, theirs.config.resid_pdrop] == rates


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_there_and_back_again_every_bit_is_the_same(tmp_path: Path, quiet: list[str], dtype: torch.dtype) -> None:
    gpt = make_gpt(dropout=[0.1, 0.0, 0.2], n_inner=40, activation="silu", norm_eps=1e-6).to(dtype)
    gpt.save_pretrained(tmp_path / "ours")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert theirs.dtype == dtype
    theirs.save_pretrained(tmp_path / "theirs")
    again = GPT.from_pretrained(tmp_path / "theirs", dtype=dtype)
    assert again.config == gpt.config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), gpt.parameters(), strict=True))
    again.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()


TEXT = "Hello  world, it's a déjà-vu 日本 🙂\n\n  x ."
TOKENIZERS = {
    "characters": lambda: CharTokenizer(TEXT),
    "characters that skip": lambda: CharTokenizer(TEXT, on_unknown="skip"),
    "bytes": lambda: BPETokenizer.train([TEXT] * 3 + ["the end"], vocab_size=280),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_comes_along(tmp_path: Path, quiet: list[str], name: str) -> None:
    tokenizer: Tokenizer = TOKENIZERS[name]()
    gpt = make_gpt(vocab_size=tokenizer.vocab_size, block_size=100)
    gpt.save_pretrained(tmp_path, tokenizer)
    theirs, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = theirs(TEXT)["input_ids"]
    assert ids == tokenizer.encode(TEXT)
    assert theirs.decode(ids) == tokenizer.decode(ids) == TEXT
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.model_max_length == 100
    end = getattr(tokenizer, "end_of_text", None)
    assert [theirs.eos_token_id, theirs.bos_token_id, model.config.eos_token_id] == [end] * 3
    assert model.config.bos_token_id == tokenizer.start_token
    assert (model.generation_config.eos_token_id, end is None) == (end, name != "bytes")
    batch = theirs(["Hello", "Hello"], return_tensors="pt")
    theirs_text = model.generate(
        **batch, max_length=batch["input_ids"].shape[1] + 20, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    assert torch.equal(gpt.generate(batch["input_ids"], 20, temperature=0), theirs_text)


def test_the_card_says_how_large_the_model_is_and_is_never_overwritten(tmp_path: Path) -> None:
    make_gpt().save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert all(part in card for part in (f"{make_gpt().n_parameters:,}", "block_size=24", "AutoModelForCausalLM"))
    (tmp_path / "README.md").write_text("my own words")
    make_gpt().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own words"


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    make_gpt().save_pretrained(tmp_path / "new" / "folder")
    assert len({stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new" / "folder").iterdir()}) == 1


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"cannot write .*file"):
        make_gpt().save_pretrained(tmp_path / "file")


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    gpt, limits = make_gpt(), resource.getrlimit(resource.RLIMIT_FSIZE)
    gpt.save_pretrained(tmp_path)
    before = sorted(tmp_path.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(ResourceError, match=r"cannot write .*model\.safetensors") as caught:
            make_gpt().save_pretrained(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
    again = GPT.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), gpt.parameters(), strict=True))


def test_an_activation_that_transformers_lacks_is_refused(tmp_path: Path) -> None:
    gpt = make_gpt()
    gpt.config["activation"] = "snake"
    with pytest.raises(UserError, match="activation=snake"):
        gpt.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()

"""A GGUF file on the command line: by model.name, with the tokenizer in it."""

from pathlib import Path

import gguf
import pytest

from mingpt_lightning import GPT
from mingpt_lightning.bpe import FastTokenizer, read_tokenizer
from mingpt_lightning.completion import complete
from tests.common import FOX, TINY, Cli, summary
from tests.gguf_files import TEXT, WIDE, add_tokenizer, trained, write_model
from tests.llama_models import make

STEPS = [item for item in TINY if item.startswith("trainer.")]
FILE = ("model=smollm2-135m-pretrained", "model.name=tiny.gguf")


@pytest.fixture
def file() -> Path:
    def change(writer: gguf.GGUFWriter) -> None:
        add_tokenizer(writer, "smollm")
        writer.add_chat_template("{{ messages }}")

    return write_model(Path("tiny.gguf"), make("llama", vocab_size=trained().vocab_size + 2, **WIDE), "Q8_0", change)


def test_it_is_sampled_tested_and_trained_in_its_own_tokens(cli: Cli, file: Path) -> None:
    code, out, err = cli("task=generate", *FILE, "prompt=the cat", "temperature=0", "max_new_tokens=8")
    gpt, tokenizer = GPT.from_pretrained(file), read_tokenizer(file)
    assert (code, err) == (0, "")
    assert out == f"the cat{complete(gpt, tokenizer, ['the cat'], 8, temperature=0)[0].text}\n"
    Path("book.txt").write_text(FOX * 40, encoding="utf-8")
    data = ("datamodule=text", "datamodule.path=book.txt", "datamodule.tokenizer=tiny.gguf", "datamodule.block_size=16")
    code, _, err = cli(*STEPS, *FILE, *data, "run_dir=run")
    assert code == 0, err
    assert summary("run")["metrics"]["test/loss"] > 0
    assert cli("task=test", *FILE, *data, "run_dir=tested")[0] == 0


def test_it_becomes_a_folder_with_its_tokenizer_and_chat_template(cli: Cli, file: Path) -> None:
    assert cli("task=export", "checkpoint=tiny.gguf", "output=folder")[0] == 0
    assert cli("task=export", *FILE, "output=other")[0] == 0
    for folder in ("folder", "other"):
        tokenizer = read_tokenizer(folder)
        assert isinstance(tokenizer, FastTokenizer)
        assert tokenizer.stop_tokens == (trained().vocab_size + 1,)
        assert tokenizer.encode(TEXT) == read_tokenizer(file).encode(TEXT)
        assert tokenizer.chat_template == "{{ messages }}"


def test_where_a_run_is_meant_it_says_how_to_name_it(cli: Cli, file: Path) -> None:
    for command in (("task=generate", "prompt=a"), ("task=test",), ()):
        code, _, err = cli("checkpoint=tiny.gguf", *command)
        assert code == 3
        assert "tiny.gguf is not a checkpoint of mingpt_lightning but weights alone (GGUF)" in err
        assert "model.name=" in err

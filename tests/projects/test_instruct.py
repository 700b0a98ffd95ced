"""Instruction data: which tokens take a loss, what is cut, left out or refused, and how it is split and padded."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from mingpt_lightning import LanguageModel, UserError
from mingpt_lightning.datamodule import IGNORE
from projects.instruct.datamodule import PLAIN, InstructDataModule
from tests.common import CHATML, MakeGPT

CHAT = [
    {"role": "system", "content": "be a cat"},
    {"role": "user", "content": "a dog?"},
    {"role": "assistant", "content": "the quick fox"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "jumps"},
]
ALL = {"split": [1.0, 0.0, 0.0]}


def write(rows: list[Any], name: str = "chats.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def pair(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def spoken(data: InstructDataModule, part: Any = "train") -> list[list[str]]:
    """The pieces of each example, in the order of the data: those that take a loss in [brackets]."""
    dataset = data.dataset(part)
    shown = []
    for number in range(len(dataset)):
        inputs, targets = (tensor[0].tolist() for tensor in dataset[torch.tensor([number])])
        pieces = list[str]()
        tokens = [*inputs[:1], *(t if t != IGNORE else i for i, t in zip([*inputs[1:], 0], targets, strict=True))]
        marks = [False, *(target != IGNORE for target in targets)]
        for token, mark in zip(tokens, marks, strict=True):
            text = data.tokenizer.decode([token])
            if pieces and pieces[-1].startswith("[") == mark:
                pieces[-1] = pieces[-1][: -1 if mark else None] + text + "]" * mark
            else:
                pieces.append(f"[{text}]" if mark else text)
        shown.append(pieces)
    return shown


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_answers_take_the_loss_and_what_ends_them(tokenizer: str) -> None:
    path = write([{"messages": CHAT}])
    data = InstructDataModule(path, tokenizer=tokenizer, chat_template=CHATML, **ALL)
    ((first, *rest),) = spoken(data)
    assert first == "<system>be a cat\n<user>a dog?\n<assistant>"
    assert rest[:3] == ["[the quick fox\n]", "<user>and?\n<assistant>", "[jumps\n]"]
    assert set("".join(rest[3:])) <= {data.tokenizer.decode([0])}, "padding takes none"


def test_a_prompt_and_its_completion_are_a_conversation(tokenizer: str) -> None:
    rows = [
        pair("a dog?", "the fox"),
        {"messages": [{"role": "user", "content": "a dog?"}, {"role": "assistant", "content": "the fox"}]},
        {
            "prompt": [{"role": "user", "content": "a dog?"}],
            "completion": [{"role": "assistant", "content": "the fox"}],
        },
    ]
    data = InstructDataModule(write(rows), tokenizer=tokenizer, chat_template=CHATML, **ALL)
    shown = [example[:2] for example in spoken(data)]
    assert shown == [["<user>a dog?\n<assistant>", "[the fox\n]"]] * 3


def test_without_a_template_a_line_is_the_question(tokenizer: str) -> None:
    data = InstructDataModule(write([pair("a dog?", "the fox")]), tokenizer=tokenizer, **ALL)
    assert data.tokenizer.chat_template == PLAIN
    assert spoken(data)[0][:2] == ["a dog?\n", "[the fox<|endoftext|>]"]


def test_the_loss_is_that_of_transformers(tokenizer: str, make_gpt: MakeGPT) -> None:
    rows = [{"messages": CHAT}, pair("a dog?", "the fox"), pair("who jumps over the lazy dog?", "the quick brown fox")]
    data = InstructDataModule(write(rows), tokenizer=tokenizer, chat_template=CHATML, **ALL)
    gpt = make_gpt(data.vocab_size, block_size=256, scale=2.0)
    gpt.save_pretrained("gpt")
    theirs = AutoModelForCausalLM.from_pretrained("gpt").eval()
    inputs, targets = data.dataset("train")[torch.arange(3)]
    total, tokens = LanguageModel(gpt).eval().loss_sum(inputs, targets)
    labels = torch.cat([torch.full((3, 1), IGNORE), targets], dim=1)
    expected = theirs(torch.cat([inputs, inputs[:, :1]], dim=1), labels=labels).loss
    torch.testing.assert_close(total / tokens, expected, atol=1e-5, rtol=1e-5)


def test_no_example_sees_another(tokenizer: str, make_gpt: MakeGPT) -> None:
    rows = [pair("a dog?" * n, "the fox" * (5 - n)) for n in range(1, 5)]
    data = InstructDataModule(write(rows), tokenizer=tokenizer, **ALL)
    system = LanguageModel(make_gpt(data.vocab_size, block_size=256, scale=2.0)).eval()
    dataset = data.dataset("train")
    together, _ = system.loss_sum(*dataset[torch.arange(4)])
    alone = sum(system.loss_sum(*dataset[torch.tensor([n])])[0] for n in range(4))
    torch.testing.assert_close(together, alone)


def test_a_batch_is_as_long_as_its_longest_example_whatever_the_others_are(tokenizer: str) -> None:
    rows = [pair("a", "the fox " * n) for n in (2, 200, 3, 4)]
    data = InstructDataModule(write(rows), tokenizer=tokenizer, block_size=512, batch_size=2, **ALL)
    loader = data.train_dataloader()
    shapes = [inputs.shape for inputs, _ in loader]
    assert {shape[1] % 32 for shape in shapes} == {0}
    assert len({shape[1] for shape in shapes}) == 2
    again = data.train_dataloader()
    again.load_state_dict({"sequences": 2})
    assert next(iter(again))[0].shape == shapes[1], "also where a run goes on"


def test_equal_examples_are_in_the_same_split_and_the_order_is_new_each_epoch(tokenizer: str) -> None:
    rows = [pair(f"{n // 2}?", f"{n // 2}") for n in range(200)]
    data = InstructDataModule(write(rows), tokenizer=tokenizer, split=[0.6, 0.2, 0.2], batch_size=10)
    parts = [{str(example) for example in spoken(data, part)} for part in ("train", "val", "test")]
    assert [len(part) for part in parts] == [60, 20, 20]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    assert [len(data.dataset(part)) for part in ("train", "val", "test")] == [120, 40, 40]  # type: ignore[arg-type]
    loader = data.train_dataloader()
    epochs = [torch.from_numpy(loader.indices(12 * epoch, 12)) for epoch in range(2)]
    assert all(epoch.sort().values.equal(torch.arange(120)) for epoch in epochs)
    assert not epochs[0].equal(epochs[1])


def test_validation_and_test_may_have_files_of_their_own(tokenizer: str) -> None:
    paths = {name: write([pair(f"{name}{n}?", name) for n in range(10)], f"{name}.jsonl") for name in "abc"}
    data = InstructDataModule(paths["a"], val_path=paths["b"], test_path=[paths["c"]], tokenizer=tokenizer)
    sizes = [len(data.dataset(part)) for part in ("train", "val", "test")]  # type: ignore[arg-type]
    assert sizes == [10, 10, 10]
    assert all("[b<|endoftext|>]" in example for example in spoken(data, "val"))


def test_what_is_cut_or_left_out_is_said(tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [pair("a", "b"), pair("a", "the lazy dog " * 40), pair("brown " * 40, "b"), {"messages": CHAT[:2]}]
    data = InstructDataModule(write(rows), tokenizer=tokenizer, block_size=32, **ALL)
    notes = " ".join(capsys.readouterr().err.split())
    assert "2 of 4 examples are cut to block_size=32 tokens; longest: " in notes
    assert "2 of 4 examples have no answer and are left out" in notes
    assert len(data.dataset("train")) == 2


@pytest.mark.parametrize("name", ["chats.jsonl", "chats.json", "chats.csv", "chats.tsv", "chats.parquet", "a.jsonl.gz"])
def test_every_form_of_rows_is_read(name: str, tokenizer: str) -> None:
    rows = [pair('a, "dog"?', "the\nfox"), pair("b", "c")]
    if name.endswith("jsonl.gz"):
        Path(name).write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    elif name.endswith("jsonl"):
        write(rows)
    elif name.endswith("json"):
        Path(name).write_text(json.dumps(rows))
    elif name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), name)
    else:
        comma = "," if name.endswith("csv") else "\t"
        with Path(name).open("w", newline="") as file:
            table = csv.writer(file, delimiter=comma)
            table.writerows([["id", "prompt", "completion"], *([n, *row.values()] for n, row in enumerate(rows))])
    data = InstructDataModule(name, tokenizer=tokenizer, **ALL)
    shown = sorted(example[:2] for example in spoken(data))
    assert shown == [['a, "dog"?\n', "[the\nfox<|endoftext|>]"], ["b\n", "[c<|endoftext|>]"]]


def test_conversations_of_a_parquet_file(tokenizer: str) -> None:
    pq.write_table(pa.Table.from_pylist([{"id": 1, "messages": CHAT}]), "chats.parquet")
    data = InstructDataModule("chats.parquet", tokenizer=tokenizer, chat_template=CHATML, **ALL)
    assert spoken(data)[0][1] == "[the quick fox\n]"


def test_fields_may_have_other_names_and_be_nested(tokenizer: str) -> None:
    path = write([{"data": {"q": "a dog?"}, "answer": "no"}])
    data = InstructDataModule(path, prompt_field="data.q", completion_field="answer", tokenizer=tokenizer, **ALL)
    assert spoken(data)[0][:2] == ["a dog?\n", "[no<|endoftext|>]"]


GOOD = pair("a", "b")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([GOOD, {"prompt": "a"}], "'prompt' and 'completion'; there is 'prompt' (chats.jsonl, line 2). Write {"),
        ([GOOD, {"prompt": "a", "completion": None}], "(chats.jsonl, line 2)"),
        ([GOOD, {"text": "a"}], "there is 'text' (chats.jsonl, line 2)"),
        ([GOOD, "a"], "there is 'a' (chats.jsonl, line 2)"),
        ([{"messages": [{"content": "a"}]}], "the role of message 1 is missing (chats.jsonl, line 1). Write it as"),
        ([{"messages": "a"}], "there is no list of messages (chats.jsonl, line 1)"),
        ([{"messages": [{"role": "user", "content": ["a"]}]}], "the content of message 1 is ['a']"),
        ([{"messages": CHAT[:2]}], "none of 1 examples has an answer within block_size=256; longest: "),
        ([], "chats.jsonl is empty (path)"),
    ],
)
def test_a_row_of_another_form_is_named(rows: list[Any], words: str, tokenizer: str) -> None:
    with pytest.raises(UserError) as caught:
        InstructDataModule(write(rows), tokenizer=tokenizer, **ALL)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for", "the chat template fails: TemplateSyntaxError: "),
        ("{{ raise_exception('No system!') }}", "No system! (chats.jsonl, line 1)"),
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", "rewrites what stands before"),
        ("missing.jinja", "missing.jinja is no file with a chat template"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(template: str, words: str, tokenizer: str) -> None:
    with pytest.raises(UserError) as caught:
        InstructDataModule(write([{"messages": CHAT}]), tokenizer=tokenizer, chat_template=template)
    assert words in str(caught.value)


def test_a_template_in_a_file_that_rewrites_earlier_answers(tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    last = "{% if loop.last or message['role'] != 'assistant' %}{{ message['content'] }}|{% else %}_{% endif %}"
    Path("chat.jinja").write_text(f"{{% for message in messages %}}{last}{{% endfor %}}", encoding="utf-8")
    data = InstructDataModule(write([{"messages": CHAT}]), tokenizer=tokenizer, chat_template="chat.jinja", **ALL)
    assert spoken(data)[0][:2] == ["be a cat|a dog?|_and?|", "[jumps|]"]
    assert "the chat template rewrites earlier answers: 1 examples" in " ".join(capsys.readouterr().err.split())


def test_without_a_path_it_is_300_questions_about_this_library() -> None:
    data = InstructDataModule()
    assert sum(len(data.dataset(part)) for part in ("train", "val", "test")) == 300  # type: ignore[arg-type]
    assert data.vocab_size == 512
    assert max(len(data.tokenizer.encode(row[0])) for row in spoken(data)) < 100

"""Conversations as text: as transformers renders them, and mistakes in one line."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mingpt_lightning import GPT, BPETokenizer
from mingpt_lightning.bpe import FastTokenizer, read_tokenizer
from mingpt_lightning.chat import Conversation, ask, check_messages, render
from mingpt_lightning.errors import UserError
from tests.common import CATS, CHATML, MakeGPT

LLAMA2 = """{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Roles must alternate!') }}{% endif %}{% if message['role'] == 'user' %}\
{{ bos_token + '[INST] ' + message['content'] | trim + ' [/INST]' }}{% else %}\
{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"""
GENERATION = """{%- for message in messages %}
{{- message.role }}: {% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
{%- endfor %}"""
MESSAGES = [
    {"role": "user", "content": "  a cat? "},
    {"role": "assistant", "content": "the cat"},
    {"role": "user", "content": "a dog? é"},
]


@pytest.fixture
def tokenizer() -> BPETokenizer:
    return BPETokenizer.train([CATS], 274)


def with_template(tokenizer: BPETokenizer, template: str | None) -> BPETokenizer:
    return BPETokenizer(tokenizer.arguments["tokenizer"], chat_template=template)


@pytest.mark.parametrize("template", [CHATML, LLAMA2, GENERATION])
def test_it_is_what_transformers_makes_of_an_export(
    template: str, tokenizer: BPETokenizer, make_gpt: MakeGPT, tmp_path: Path
) -> None:
    ours = with_template(tokenizer, template)
    make_gpt(ours.vocab_size).save_pretrained(tmp_path, ours)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for answer in (False, True):
        expected = theirs.apply_chat_template(MESSAGES, add_generation_prompt=answer)["input_ids"]
        assert ours.encode(render(ours, MESSAGES, answer)) == expected
    assert ask(ours, "a cat?") == theirs.apply_chat_template([{"role": "user", "content": "a cat?"}], add_generation_prompt=True)["input_ids"]  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("layout", ["string", "list", "file"])
def test_it_is_read_in_every_layout_of_files_and_kept(layout: str, tokenizer: BPETokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    config = {"string": {"chat_template": CHATML}, "list": {"chat_template": named}, "file": {}}[layout]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if layout == "file":
        (tmp_path / "chat_template.jinja").write_text(CHATML)
    ours = read_tokenizer(tmp_path)
    assert isinstance(ours, FastTokenizer)
    assert ours.chat_template == CHATML
    again = FastTokenizer.from_state(ours.state())
    assert isinstance(again, FastTokenizer)
    assert again.chat_template == CHATML


def test_a_checkpoint_of_a_tokenizer_without_one_is_as_before(tokenizer: BPETokenizer) -> None:
    assert {*tokenizer.state()["arguments"]} == {"tokenizer"}


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "no list of messages"),
        ("hello", "no list of messages"),
        (["hello"], "message 1 is 'hello'"),
        ([{"content": "a"}], "the role of message 1 is missing"),
        ([MESSAGES[0], {"role": "assistant"}], "the content of message 2 is missing"),
        ([{"role": "user", "content": ["a"]}], "the content of message 1 is ['a']"),
    ],
)
def test_a_message_of_another_form_is_named(messages: object, words: str) -> None:
    with pytest.raises(UserError) as caught:
        check_messages(messages, "chats.jsonl:3")
    assert words in str(caught.value)
    assert "(chats.jsonl:3)" in str(caught.value)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "the tokenizer has no chat template"),
        ("{% for", "TemplateSyntaxError"),
        ("{{ messages[0].content.upper( }}", "TemplateSyntaxError"),
        (LLAMA2, "Roles must alternate!"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_template_that_fails_is_one_line(template: str | None, words: str, tokenizer: BPETokenizer) -> None:
    with pytest.raises(UserError) as caught:
        render(with_template(tokenizer, template), [MESSAGES[1]])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_conversation_goes_on_and_forgets_what_does_not_fit(tokenizer: BPETokenizer) -> None:
    ours = with_template(tokenizer, CHATML)
    talk = Conversation(ours, "be a cat", block_size=90)
    first = talk.ask("a cat?", max_new_tokens=10)
    assert ours.decode(first) == "<system>be a cat\n<user>a cat?\n<assistant>"
    talk.add("a cat?", "the cat")
    second = ours.decode(talk.ask("a dog?", max_new_tokens=10))
    assert second == "<system>be a cat\n<user>a cat?\n<assistant>the cat\n<user>a dog?\n<assistant>"
    talk.add("a dog?", "the dog" * 20)
    third = ours.decode(talk.ask("and?", max_new_tokens=10))
    assert third == "<system>be a cat\n<user>and?\n<assistant>"


def test_a_conversation_needs_a_template_at_once(tokenizer: BPETokenizer) -> None:
    with pytest.raises(UserError, match="no chat template"):
        Conversation(tokenizer, None, block_size=90)


def test_an_export_keeps_it(tokenizer: BPETokenizer, make_gpt: MakeGPT, tmp_path: Path) -> None:
    make_gpt(tokenizer.vocab_size).save_pretrained(tmp_path, with_template(tokenizer, CHATML))
    assert GPT.from_pretrained(tmp_path).config["vocab_size"] == tokenizer.vocab_size
    read = read_tokenizer(tmp_path)
    assert isinstance(read, FastTokenizer)
    assert read.chat_template == CHATML

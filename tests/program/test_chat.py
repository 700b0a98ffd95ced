"""task=generate with a chat template: single questions, and a conversation at a terminal."""

import json
import os
import signal
from pathlib import Path

import pytest

from mingpt_lightning import GPT, BPETokenizer
from mingpt_lightning.chat import ask
from mingpt_lightning.completion import complete
from tests.common import CATS, CHATML, PRETRAINED, Cli, MakeGPT
from tests.program.test_prompts import read_until, terminal

GENERATE = ("task=generate", *PRETRAINED, "max_new_tokens=6")


@pytest.fixture
def chat_model(cli: Cli, make_gpt: MakeGPT) -> tuple[GPT, BPETokenizer]:
    """A pretrained model in the folder `gpt` that has a chat template, and the same in Python."""
    trained = BPETokenizer.train([CATS], 274)
    tokenizer = BPETokenizer(trained.arguments["tokenizer"], chat_template=CHATML)
    gpt = make_gpt(tokenizer.vocab_size, block_size=256, scale=2.0)
    gpt.save_pretrained("gpt", tokenizer)
    return gpt, tokenizer


def answer_to(model: tuple[GPT, BPETokenizer], question: str, system: str | None = None, **options: object) -> str:
    gpt, tokenizer = model
    return complete(gpt, tokenizer, [ask(tokenizer, question, system)], 6, **{"seed": 0} | options)[0].text  # type: ignore[arg-type]


def test_a_question_gets_its_answer_alone(cli: Cli, chat_model: tuple[GPT, BPETokenizer]) -> None:
    code, out, err = cli(*GENERATE, "prompt=a cat?", "chat=true")
    assert (code, out, err) == (0, f"{answer_to(chat_model, 'a cat?')}\n", "")
    code, out, _ = cli(*GENERATE, "prompt=a cat?")
    assert out.startswith("a cat?"), "without chat=true it is text that goes on"


@pytest.mark.parametrize("key", ["system", "system_message"])
def test_the_system_message_comes_first(cli: Cli, chat_model: tuple[GPT, BPETokenizer], key: str) -> None:
    said = "You're a cat, or [dog]: ${x}"
    code, out, err = cli(*GENERATE, "prompt=who?", f"{key}={said}")
    assert (code, out, err) == (0, f"{answer_to(chat_model, 'who?', said)}\n", "")


def test_many_questions_are_answered_to_a_file(cli: Cli, chat_model: tuple[GPT, BPETokenizer]) -> None:
    Path("q.jsonl").write_text('{"prompt": "a cat?"}\n{"prompt": "a dog?"}\n')
    code, _, err = cli(*GENERATE, "prompt_file=q.jsonl", "chat=true", "output=a.jsonl", "temperature=0")
    assert code == 0, err
    rows = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert rows == [{"prompt": q, "completion": answer_to(chat_model, q, temperature=0)} for q in ("a cat?", "a dog?")]


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("argument", ["chat=true", "system=be brief"])
def test_a_model_without_a_template_says_so(cli: Cli, argument: str) -> None:
    code, out, err = cli(*GENERATE, "prompt=a", argument)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "the tokenizer has no chat template (chat). Choose an instruct model, or leave chat out." in err


def test_a_conversation_goes_on_until_reset(cli: Cli, chat_model: tuple[GPT, BPETokenizer], tmp_path: Path) -> None:
    gpt, tokenizer = chat_model
    process, keyboard = terminal(tmp_path, *GENERATE, "temperature=0", "system=be a cat")
    first = answer_to(chat_model, "a cat?", "be a cat", temperature=0)
    asked = f"<system>be a cat\n<user>a cat?\n<assistant>{first}\n<user>a dog?\n<assistant>"
    second = complete(gpt, tokenizer, [tokenizer.encode(asked)], 6, temperature=0)[0].text
    try:
        assert "/reset starts anew" in read_until(keyboard, "> ")
        for question, answer in [("a cat?", first), ("a dog?", second), ("/reset", ""), ("a cat?", first)]:
            os.write(keyboard, question.encode() + b"\n")
            shown = read_until(keyboard, "> ")
            assert shown.replace("\r\n", "\n") == f"{question}\n{answer}{chr(10) if answer else ''}> "
        os.write(keyboard, b"\x04")
        assert process.wait(20) == 0
    finally:
        process.kill()
        os.close(keyboard)


def test_an_answer_that_is_stopped_stays_in_the_conversation(
    cli: Cli, chat_model: tuple[GPT, BPETokenizer], tmp_path: Path
) -> None:
    process, keyboard = terminal(tmp_path, *GENERATE, "max_new_tokens=1000000", "stop_tokens=[]")
    try:
        read_until(keyboard, "> ")
        os.write(keyboard, b"a cat?\n")
        read_until(keyboard, "a cat?\r\n")
        for _ in range(300):  # until it is longer than the context
            os.read(keyboard, 4096)
        process.send_signal(signal.SIGINT)
        read_until(keyboard, "> ")
        os.write(keyboard, b"a dog?\n")
        assert "the context is full" in read_until(keyboard, "oldest messages")
        process.send_signal(signal.SIGINT)
        read_until(keyboard, "> ")
        os.write(keyboard, b"\x04")
        assert process.wait(20) == 0
    finally:
        process.kill()
        os.close(keyboard)

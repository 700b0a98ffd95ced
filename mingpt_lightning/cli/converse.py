"""task=generate at a terminal: it asks for prompts and answers, or holds a conversation with a chat model."""

import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from mingpt_lightning.chat import Conversation
from mingpt_lightning.completion import Prompt, prompt_tokens, stream
from mingpt_lightning.console import console, say
from mingpt_lightning.errors import UserError
from mingpt_lightning.generation import count_repeats
from mingpt_lightning.language_model import LanguageModel

RESET = "/reset"
"""What begins a new conversation."""


def questions(keys: str) -> Iterator[str]:
    """What a person types, until Ctrl-D; Ctrl-C takes a line back. keys: what there is to know."""
    with suppress(ImportError):
        import readline  # noqa: F401  # the line can be edited, and earlier ones come back
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it doesn't end the program here
    console.print(f"Type a prompt. Ctrl-C stops an answer, {keys}Ctrl-D leaves.")
    while True:
        try:
            yield input("> ")
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            sys.stdout.write("\n")


def answer(system: LanguageModel, prompt: Prompt, max_new_tokens: int, options: dict[str, Any]) -> str:
    """Write a completion to standard output as it is generated, up to Ctrl-C; returns what there is of it."""
    assert system.tokenizer is not None
    pieces = []
    with suppress(KeyboardInterrupt):
        for piece in stream(system.gpt, system.tokenizer, prompt, max_new_tokens, **options):
            pieces.append(piece)
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")
    return "".join(pieces)


def complete_prompts(system: LanguageModel, max_new_tokens: int, options: dict[str, Any]) -> None:
    """Ask for prompts and continue them. Repeating a prompt gives another continuation."""
    assert system.tokenizer is not None
    asked: list[tuple[int, ...]] = []
    for prompt in questions(""):
        try:
            asked.append(tuple(prompt_tokens(system.tokenizer, prompt)))
            sys.stdout.write(system.tokenizer.decode(system.tokenizer.encode(prompt)) if prompt else "")
            answer(system, prompt, max_new_tokens, {**options, "repeat": count_repeats(asked)[-1]})
        except KeyboardInterrupt:
            sys.stdout.write("\n")
        except UserError as error:
            say(error)


def converse(system: LanguageModel, system_message: str | None, max_new_tokens: int, options: dict[str, Any]) -> None:
    """Hold a conversation by the tokenizer's chat template: the model sees what was said before."""
    assert system.tokenizer is not None
    conversation = Conversation(system.tokenizer, system_message, system.gpt.block_size)
    asked: list[tuple[int, ...]] = []
    for question in questions(f"{RESET} starts anew, "):
        if question.strip() == RESET:
            conversation.turns = []
            continue
        try:
            before = len(conversation.turns)
            tokens = conversation.ask(question, max_new_tokens)
            if len(conversation.turns) < before:
                console.print("note: the context is full; the model no longer sees the oldest messages")
            asked.append(tuple(tokens))
            said = answer(system, tokens, max_new_tokens, {**options, "repeat": count_repeats(asked)[-1]})
            conversation.add(question, said)
        except KeyboardInterrupt:
            sys.stdout.write("\n")
        except UserError as error:
            say(error)

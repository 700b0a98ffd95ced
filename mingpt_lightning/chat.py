"""Conversations as text: a tokenizer's chat template, rendered by transformers in Jinja's sandbox.

A message is {"role": "system" | "user" | "assistant" | …, "content": text}; which roles there are, the template says.
"""

from collections.abc import Sequence
from typing import Any

from mingpt_lightning.bpe import FastTokenizer
from mingpt_lightning.errors import UserError
from mingpt_lightning.tokenizer import Tokenizer

Message = dict[str, str]

FIX = 'Write it as {"role": "user", "content": "..."}.'


def chat_template_of(tokenizer: Tokenizer | None) -> str | None:
    """The chat template of a tokenizer; None where it has none."""
    return tokenizer.chat_template if isinstance(tokenizer, FastTokenizer) else None


def check_messages(messages: Any, place: str) -> list[Message]:
    """Messages, as they are. Raises UserError, naming the first that isn't one; place: where they are."""
    if not isinstance(messages, list) or not messages:
        raise UserError("there is no list of messages", place, f"Write [{FIX[12:-1]}, ...].")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise UserError(f"message {number} is {str(message)[:60]!r}", place, FIX)
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                found = f"is {str(message[key])[:60]}" if key in message else "is missing"
                raise UserError(f"the {key} of message {number} {found}", place, FIX)
    return messages


def render(tokenizer: Tokenizer | None, messages: Sequence[Message], answer: bool = False) -> str:
    """A conversation as text, by the tokenizer's chat template; answer: up to where the assistant's next one begins.

    Raises UserError where there is no template, or where it fails on these messages.
    Source: transformers, `PreTrainedTokenizerBase.apply_chat_template`.
    """
    template = chat_template_of(tokenizer)
    if not isinstance(tokenizer, FastTokenizer) or template is None:
        raise UserError("the tokenizer has no chat template", "chat", "Choose an instruct model, or leave chat out.")
    from transformers.utils.chat_template_utils import render_jinja_template

    special: dict[str, Any] = {
        f"{role}_token": text(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad", "unk")
    }
    try:
        rendered: Any = render_jinja_template(
            [list(messages)], chat_template=template, add_generation_prompt=answer, **special
        )
    except Exception as error:  # whatever a template raises: a syntax error, a role that it doesn't know
        what = f"the chat template fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(what, "messages", "Give it the roles and the order that it takes, or correct it.") from error
    return str(rendered[0][0])


def text(tokenizer: FastTokenizer, role: str) -> str:
    """A special token by its role; empty where the tokenizer has none."""
    given = tokenizer.special_tokens.get(role)
    number = given[0] if isinstance(given, list) else given
    return "" if number is None else str(tokenizer.backend.id_to_token(number))


def ask(tokenizer: Tokenizer, question: str, system_message: str | None = None) -> list[int]:
    """The tokens to which an assistant's answer to one question is the continuation."""
    before = [] if system_message is None else [{"role": "system", "content": system_message}]
    return tokenizer.encode(render(tokenizer, [*before, {"role": "user", "content": question}], answer=True))


class Conversation:
    """Questions and answers so far, of which the oldest are left out where they don't fit into the context.

    tokenizer: with a chat template. system_message: what stands before all; None leaves that to the template.
    block_size: the model's context, in tokens.
    """

    def __init__(self, tokenizer: Tokenizer, system_message: str | None, block_size: int):
        self.tokenizer, self.block_size = tokenizer, block_size
        self.before: list[Message] = [] if system_message is None else [{"role": "system", "content": system_message}]
        self.turns: list[tuple[Message, Message]] = []
        render(tokenizer, [*self.before, {"role": "user", "content": "Hello"}], answer=True)  # its errors, now

    def ask(self, question: str, max_new_tokens: int) -> list[int]:
        """The tokens that the next answer continues; at most half of the context is kept free for it."""
        room = min(max_new_tokens, self.block_size // 2)
        while True:
            earlier = [message for turn in self.turns for message in turn]
            asked = [*self.before, *earlier, {"role": "user", "content": question}]
            tokens = self.tokenizer.encode(render(self.tokenizer, asked, answer=True))
            if not self.turns or len(tokens) + room <= self.block_size:
                return tokens
            self.turns = self.turns[1:]

    def add(self, question: str, answer: str) -> None:
        """Remember a question and its answer, or what there is of it."""
        self.turns.append(({"role": "user", "content": question}, {"role": "assistant", "content": answer}))

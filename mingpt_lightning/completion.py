"""Text generation: prompts in, completions out, at once or streamed."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mingpt_lightning.errors import UserError
from mingpt_lightning.generation import Sampling, decode
from mingpt_lightning.gpt import GPT
from mingpt_lightning.tokenizer import Tokenizer

Prompt = str | Sequence[int]
"""A text, or token ids that already have everything around it, such as a conversation's."""


class Completion(NamedTuple):
    """A prompt as its tokenizer decodes it, and the text that continues it."""

    prompt: str
    text: str


def complete(
    gpt: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    *,
    stop: Sequence[str] = (),
    stop_tokens: Sequence[int] | None = None,
    use_cache: bool = True,
    repeats: Sequence[int] | None = None,
    **sampling: Any,
) -> list[Completion]:
    """Continue prompts, all of them in one batch; `sampling` as for `Sampling`, `repeats` as for `decode`.

    An empty prompt starts from the tokenizer's start token, which isn't shown: a GPT can't continue nothing.
    stop: a text ends with the first of these strings that it generates. stop_tokens: a text ends before the first of
    these tokens; None takes the tokenizer's, which is its end of text, if it has one.
    """
    check_stop(stop)
    shown = [tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    ends = set(tokenizer.stop_tokens if stop_tokens is None else stop_tokens)
    new: list[list[int]] = [[] for _ in prompts]
    going = set(range(len(prompts)))
    open_ended = tokenizer.answer_length is None
    reach = max((len(string.encode()) for string in stop if open_ended), default=0)  # no token is less than a byte
    rows = [prompt_tokens(tokenizer, prompt) for prompt in prompts]
    for column in decode(gpt, rows, max_new_tokens, Sampling(**sampling), use_cache, repeats, tokenizer.vocab_size):
        values = column.tolist()
        for row in tuple(going):
            if values[row] in ends:
                going.discard(row)
                continue
            new[row].append(values[row])
            if reach and any(string in tokenizer.decode(new[row][-reach:]) for string in stop):
                going.discard(row)
        if not going:
            break
    texts = []
    for tokens, more in zip(shown, new, strict=True):
        before = tokenizer.decode(tokens) if tokens else ""
        texts.append(Completion(before, until(tokenizer.decode([*tokens, *more])[len(before) :], stop)))
    return texts


def stream(
    gpt: GPT,
    tokenizer: Tokenizer,
    prompt: Prompt,
    max_new_tokens: int,
    *,
    stop: Sequence[str] = (),
    stop_tokens: Sequence[int] | None = None,
    use_cache: bool = True,
    repeat: int = 0,
    **sampling: Any,
) -> Iterator[str]:
    """Continue one prompt and yield it in pieces of whole characters as it is generated; options as for `complete`.

    Joined, the pieces equal the text of `complete`. repeat: how many earlier texts had the same prompt.
    """
    check_stop(stop)
    if tokenizer.answer_length is not None:  # the tokenizer decodes an answer only as a whole
        options = {"stop": stop, "stop_tokens": stop_tokens, "use_cache": use_cache, "repeats": [repeat], **sampling}
        yield complete(gpt, tokenizer, [prompt], max_new_tokens, **options)[0].text
        return
    ends = set(tokenizer.stop_tokens if stop_tokens is None else stop_tokens)
    row = prompt_tokens(tokenizer, prompt)

    def tokens() -> Iterator[int]:
        options = Sampling(**sampling), use_cache, [repeat], tokenizer.vocab_size
        for column in decode(gpt, [row], max_new_tokens, *options):
            if (token := int(column)) in ends:
                return
            yield token

    tail, reach = "", max((len(string) for string in stop), default=1) - 1
    for piece in tokenizer.stream(tokens()):
        text = until(tail + piece, stop)
        yield text[len(tail) :]
        if len(text) < len(tail + piece) or text.endswith(tuple(stop)):
            return
        tail = text[-reach:] if reach else ""


def prompt_tokens(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The tokens of a prompt; of an empty one, the start token. Raises UserError where there is no such token."""
    if tokens := tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else list(prompt):
        return tokens
    if tokenizer.start_token is None:
        raise UserError("the prompt is empty", "prompt", "This model can't start from nothing; give it some text.")
    return [tokenizer.start_token]


def check_stop(stop: Sequence[str]) -> None:
    """Raise UserError for an empty stop string."""
    if "" in stop:
        raise UserError("a stop string is empty", "stop", "Leave it out, or give at least one character.")


def until(text: str, stop: Sequence[str]) -> str:
    """The text up to the end of the stop string that ends first; all of it if it has none."""
    ends = [place + len(string) for string in stop if (place := text.find(string)) >= 0]
    return text[: min(ends, default=len(text))]

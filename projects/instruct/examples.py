"""From the rows of a file to conversations, to text, to tokens of which some are an answer."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from mingpt_lightning.bpe import FastTokenizer
from mingpt_lightning.chat import Message, check_messages, render
from mingpt_lightning.datamodule import Split
from mingpt_lightning.errors import UserError
from mingpt_lightning.rows import ABSENT, find, read_records
from mingpt_lightning.shuffle import permute
from projects.text.corpus import matches

QUESTIONS = Path(__file__).with_name("questions.jsonl")
"""300 questions about this library, and the command that is the answer to each."""

SPLIT_KEY = 1337  # of the permutation that splits the examples; never changes
AT_ONCE = 1000  # texts that are tokenised together


class Text(NamedTuple):
    """A conversation as text; where answers begin and end in it; whether the template rewrites earlier ones."""

    text: str
    answers: list[tuple[int, int]]
    rewritten: bool = False


class Example(NamedTuple):
    """Token ids, and which of them are of an answer: (T,) uint32 and (T,) bool."""

    tokens: np.ndarray
    answer: np.ndarray


def files(given: str | list[str] | None, where: str) -> list[Path]:
    """The files of a path, a glob or a list of them; None: QUESTIONS."""
    paths = [QUESTIONS] if given is None else [given] if isinstance(given, str) else given
    return list(dict.fromkeys(file for path in paths for file in matches(str(path), where)))


def read(
    paths: Iterable[Path], where: str, fields: tuple[str, str], encoding: str | None
) -> Iterator[tuple[str, list[Message]]]:
    """The conversation of each row, after the place where it is; fields: of a prompt and its completion.

    Raises UserError for a row of another form.
    """
    for file in paths:
        for place, row in read_records(file, fields[0], where, encoding):
            at = f"{file}, {place}"
            prompt, completion = (find(row, field) if isinstance(row, dict) else ABSENT for field in fields)
            if isinstance(row, dict) and "messages" in row:
                yield at, check_messages(row["messages"], at)
            elif isinstance(prompt, list) and isinstance(completion, list):
                yield at, check_messages([*prompt, *completion], at)
            elif isinstance(prompt, str) and isinstance(completion, str):
                yield at, [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            else:
                there = ", ".join(map(repr, row)) if isinstance(row, dict) else repr(row)
                what = f"there are no messages, and no texts {fields[0]!r} and {fields[1]!r}; there is {there[:200]}"
                fix = 'Write {"messages": [...]} or {"prompt": "...", "completion": "..."}, or name the fields.'
                raise UserError(what, at, fix)


def as_text(tokenizer: FastTokenizer, messages: list[Message], place: str) -> Text:
    """A conversation up to its last answer, by the chat template; place: where it is.

    An answer begins where the template has the assistant begin, and ends with what the template puts behind it. Where
    a template shows an earlier answer otherwise once the conversation has gone on, that one isn't among the answers.
    """
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        return Text("", [])
    try:
        whole, answers = render(tokenizer, messages[: turns[-1] + 1]), []
        for turn in turns:
            before, after = render(tokenizer, messages[:turn], answer=True), render(tokenizer, messages[: turn + 1])
            if whole.startswith(after) and after.startswith(before):
                answers.append((len(before), len(after)))
    except UserError as error:
        raise UserError(error.what, place, error.fix) from error
    if not answers or answers[-1][1] != len(whole):
        what = "the chat template rewrites what stands before an answer, so none can be told from the rest"
        raise UserError(what, "chat_template", "Give one that only adds to the conversation.")
    return Text(whole, answers, len(answers) < len(turns))


def encode(tokenizer: FastTokenizer, texts: Sequence[Text]) -> Iterator[Example]:
    """The tokens of texts. A token that begins before an answer is none of it."""
    for first in range(0, len(texts), AT_ONCE):
        part = texts[first : first + AT_ONCE]
        encodings = tokenizer.backend.encode_batch([text.text for text in part], add_special_tokens=False)
        for encoding, text in zip(encodings, part, strict=True):
            starts = np.array([start for start, _ in encoding.offsets], np.int64)
            inside = [(begin <= starts) & (starts < end) for begin, end in text.answers]
            yield Example(np.array(encoding.ids, np.uint32), np.any(inside, axis=0) if inside else starts < 0)


def divide(examples: Iterable[Example], shares: Sequence[float]) -> dict[Split, list[Example]]:
    """The examples of each split: at random, and equal ones in the same."""
    groups: dict[bytes, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.tokens.tobytes(), []).append(example)
    order = permute(np.arange(len(groups)), len(groups), SPLIT_KEY) if groups else np.array([], np.int64)
    distinct = [group for _, group in sorted(zip(order.tolist(), groups.values(), strict=True))]
    ends = [round(len(groups) * sum(shares[: number + 1])) for number in range(3)]
    bounds = zip(get_args(Split), [0, *ends], ends, strict=False)
    return {part: [example for group in distinct[start:end] for example in group] for part, start, end in bounds}

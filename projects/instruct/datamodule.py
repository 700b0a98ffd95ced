"""Questions and answers, to fine-tune a model as an assistant: the loss counts the answers only.

A row of a file is a conversation, or a prompt and a completion, which is a conversation of two messages; the
tokenizer's chat template makes it a text. Each example is a sequence of its own, padded at the end, so that none sees
another.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from mingpt_lightning.bpe import BPETokenizer, FastTokenizer, make_tokenizer, read_tokenizer, with_chat_template
from mingpt_lightning.chat import Message
from mingpt_lightning.console import console
from mingpt_lightning.datamodule import IGNORE, Batch, SequenceDataModule, Split, check_split
from mingpt_lightning.errors import UserError, require_positive
from projects.instruct.examples import Example, as_text, divide, encode, files, read

PLAIN = """{% for message in messages %}{{ message['content'] }}\
{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}{% endfor %}"""
"""The chat template of a tokenizer without one: a question, a line break, the answer, the end of the text."""

MULTIPLE = 32
"""A batch has a multiple of so many tokens, or `block_size`, so that there are few shapes to compile."""


class InstructDataset:
    """The examples of one split: (B,) indices -> two (B, T) tensors, where T is enough for the longest of them."""

    ragged = True

    def __init__(self, examples: Sequence[Example], block_size: int):
        self.block_size = block_size
        lengths = np.array([len(example.tokens) for example in examples], np.int64)
        self.ends = np.cumsum(lengths)
        self.starts = self.ends - lengths
        self.tokens = np.concatenate([np.array([], np.uint32), *(example.tokens for example in examples)])
        self.answer = np.concatenate([np.array([], bool), *(example.answer for example in examples)])

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, indices: Tensor) -> Batch:
        starts, ends = self.starts[indices.numpy()], self.ends[indices.numpy()]
        T = min(self.block_size, -(-int((ends - starts).max() - 1) // MULTIPLE) * MULTIPLE)
        places = starts[:, None] + np.arange(T + 1)
        inside = places < ends[:, None]
        places[~inside] = 0
        tokens, answer = self.tokens[places].astype(np.int64), self.answer[places] & inside
        inputs = torch.from_numpy(np.where(inside, tokens, 0)[:, :-1])
        return inputs, torch.from_numpy(np.where(answer, tokens, IGNORE)[:, 1:])


class InstructDataModule(SequenceDataModule):
    """Conversations from JSON Lines, JSON, CSV or Parquet, with a loss on the assistant's messages.

    path: a file, a glob or a list of them; None is QUESTIONS. A row has `messages`, a list of {"role", "content"}, or a
    prompt and a completion under `prompt_field` and `completion_field`. val_path, test_path: those for validation and
    test, if they have files of their own; `split` is of the rest, by example, and equal examples are in the same split.
    tokenizer: a hub id, a folder, a tokenizer.json, a GGUF file, or the content of a tokenizer.json; None trains one of
    `vocab_size` tokens. special_tokens: see `FastTokenizer`. chat_template: instead of the tokenizer's, in Jinja or as
    a file; where there is none, PLAIN. block_size: tokens after which an example is cut off.

    Raises UserError, naming file and line, for a row that is neither, and where no answer is left.
    """

    tokenizer: FastTokenizer

    def __init__(
        self,
        path: str | list[str] | None = None,
        *,
        val_path: str | list[str] | None = None,
        test_path: str | list[str] | None = None,
        tokenizer: str | None = None,
        revision: str | None = None,
        special_tokens: dict[str, int | list[int]] | None = None,
        chat_template: str | None = None,
        vocab_size: int = 512,
        prompt_field: str = "prompt",
        completion_field: str = "completion",
        encoding: str | None = None,
        block_size: int = 256,
        split: Sequence[float] = (0.9, 0.05, 0.05),
        batch_size: int = 16,
        seed: int = 0,
    ):
        super().__init__(batch_size, seed)
        require_positive(block_size=block_size)
        check_split(split)
        self.block_size = block_size
        fields = prompt_field, completion_field
        given = {"path": path, "val_path": val_path, "test_path": test_path}
        rows = {
            where: list(read(files(paths, where), where, fields, encoding))
            for where, paths in given.items()
            if where == "path" or paths is not None
        }
        texts = [message["content"] for _, messages in rows["path"] for message in messages]
        self.tokenizer = make(tokenizer, revision, special_tokens, chat_template, vocab_size, texts)
        found = {where: self.examples(conversations, where) for where, conversations in rows.items()}
        own: dict[Split, list[Example]] = {s: found[f"{s}_path"] for s in get_args(Split) if f"{s}_path" in found}
        shares = [0.0 if part in own else share for part, share in zip(get_args(Split), split, strict=True)]
        parts = divide(found["path"], [share / sum(shares) for share in shares]) | own
        self.datasets = {part: InstructDataset(examples, block_size) for part, examples in parts.items()}

    def dataset(self, split: Split) -> InstructDataset:
        return self.datasets[split]

    def examples(self, conversations: list[tuple[str, list[Message]]], where: str) -> list[Example]:
        """Conversations as tokens. What is cut off or has no answer is said."""
        texts = [as_text(self.tokenizer, messages, place) for place, messages in conversations]
        whole = [*encode(self.tokenizer, texts)]
        cut = [Example(*(part[: self.block_size + 1] for part in example)) for example in whole]
        kept = [example for example in cut if example.answer[1:].any()]
        total, name = len(whole), "examples" if where == "path" else f"examples of {where}"
        longest = max((len(example.tokens) - 1 for example in whole), default=0)
        long = sum(len(example.tokens) > self.block_size + 1 for example in whole)
        rewritten = sum(text.rewritten for text in texts)
        if not kept:
            what = f"none of {total:,} {name} has an answer within block_size={self.block_size}; longest: {longest:,}"
            raise UserError(what, "block_size" if long else where, "Give a larger block_size, or other data.")
        notes = {
            f"{long:,} of {total:,} {name} are cut to block_size={self.block_size} tokens; longest: {longest:,}": long,
            f"{total - len(kept):,} of {total:,} {name} have no answer and are left out": total - len(kept),
            f"the chat template rewrites earlier answers: {rewritten:,} {name} have a loss without them": rewritten,
        }
        for note in (note for note, count in notes.items() if count):
            console.print(f"note: {note}", markup=False)
        return kept


def make(
    name: str | None,
    revision: str | None,
    special_tokens: dict[str, Any] | None,
    chat_template: str | None,
    vocab_size: int,
    texts: list[str],
) -> FastTokenizer:
    """The tokenizer, with a chat template; arguments as for `InstructDataModule`."""
    if revision is not None and name is None:
        raise UserError(f"revision={revision} of no tokenizer", "revision", "Give a tokenizer.")
    if name is None:
        name = BPETokenizer.train(texts, vocab_size).arguments["tokenizer"]
    given = name.lstrip().startswith("{")
    made = make_tokenizer(name, special_tokens) if given else read_tokenizer(name, revision, special_tokens)
    if not isinstance(made, FastTokenizer):
        raise UserError("this is a vocabulary of characters", "tokenizer", "Give one of words or parts of words.")
    if chat_template is not None and "{" not in chat_template:
        try:
            chat_template = Path(chat_template).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            what = f"{chat_template} is no file with a chat template: {error}"
            raise UserError(what, "chat_template", "Give a file, or the template itself.") from error
    return with_chat_template(made, chat_template or made.chat_template or PLAIN)

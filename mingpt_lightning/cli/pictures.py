"""task=generate for a model of pictures: samples, and completions of the lower half of a picture, as a PNG."""

import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mingpt_lightning.completion import prompt_tokens
from mingpt_lightning.console import console
from mingpt_lightning.errors import UserError
from mingpt_lightning.generation import Sampling, count_repeats, decode
from mingpt_lightning.language_model import LanguageModel

ROWS = 16
"""How many pictures are generated at once."""

FOR_TEXT = ("max_new_tokens", "stop", "stop_tokens", "chat", "system_message")
"""Settings of task=generate that mean nothing for a picture."""


def draw(cfg: DictConfig, system: LanguageModel, prompts: list[str], sampling: dict[str, Any]) -> None:
    """Write a grid of samples; for prompts that name pictures, a row for each: the picture, its half, completions.

    Into `output`, or into the first of pictures.png, pictures-2.png, … that isn't there.
    """
    tokenizer = system.tokenizer
    assert tokenizer is not None
    for name in FOR_TEXT:
        if cfg[name] is not None:
            raise UserError(f"{name}={cfg[name]} is for text, and this model makes pictures", name, "Leave it out.")
    file = free_name() if cfg.output is None else Path(cfg.output)
    if file.suffix.lower() != ".png":
        raise UserError(f"pictures are written as PNG, not as {file.name}", "output", f"Use {file.stem}.png.")
    given = [tokenizer.encode(prompt) for prompt in prompts]  # whose errors come first
    samples = pictures(system, prompts, cfg.num_samples, sampling)
    if prompts == [""]:
        drawn, wide = list(samples), math.ceil(math.sqrt(cfg.num_samples))
        tokenizer.write_pictures(file, [drawn[first : first + wide] for first in range(0, len(drawn), wide)])
    else:
        rows = [[start, *(next(samples) for _ in range(cfg.num_samples))] for start in given]
        tokenizer.write_pictures(file, rows, prompts)
    console.print(f"written     {file}", markup=False)


def pictures(
    system: LanguageModel, prompts: list[str], num_samples: int, sampling: dict[str, Any]
) -> Iterator[list[int]]:
    """For each prompt, `num_samples` times: the tokens of a whole picture that begins with it."""
    assert system.tokenizer is not None and system.tokenizer.picture is not None  # noqa: PT018
    tokenizer, size = system.tokenizer, math.prod(system.tokenizer.picture)
    rows = [prompt_tokens(tokenizer, prompt) for prompt in prompts for _ in range(num_samples)]
    repeats = count_repeats(map(tuple, rows))
    for first in range(0, len(rows), ROWS):
        batch, before = rows[first : first + ROWS], repeats[first : first + ROWS]
        most = 1 + size - min(map(len, batch))
        columns = decode(system.gpt, batch, most, Sampling(**sampling), True, before, tokenizer.start_token)
        new = zip(*(column.tolist() for column in columns), strict=True)
        for row, more in zip(batch, new, strict=True):
            yield [*row, *more][1 : 1 + size]


def free_name() -> Path:
    """Where pictures are written without `output`: a file that isn't there yet, in the working directory."""
    names = (Path(f"pictures-{n}.png" if n > 1 else "pictures.png") for n in count(1))
    return next(name for name in names if not name.exists())

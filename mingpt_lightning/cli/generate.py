"""task=generate: prompts from the command line, a file or the keyboard; text to standard output or to a file."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from mingpt_lightning.adapter import merge_adapter
from mingpt_lightning.chat import ask, chat_template_of
from mingpt_lightning.cli.build import device_for
from mingpt_lightning.cli.converse import answer, complete_prompts, converse
from mingpt_lightning.cli.pictures import draw
from mingpt_lightning.cli.restore import read_system
from mingpt_lightning.completion import Prompt, check_stop, complete, prompt_tokens
from mingpt_lightning.console import console
from mingpt_lightning.device import keep_memory, set_threads
from mingpt_lightning.errors import CheckpointError, UserError, require_positive
from mingpt_lightning.files import write_error
from mingpt_lightning.generation import Sampling, count_repeats
from mingpt_lightning.inference import layout_rates, optimize_for_inference
from mingpt_lightning.language_model import LanguageModel
from mingpt_lightning.probe import fastest
from mingpt_lightning.rows import Row, format_of, read_rows
from mingpt_lightning.text import read_text

ROWS = 16
"""How many texts are generated at once: on a CPU, so many take little longer than one."""


SEPARATOR = f"{'-' * 40}\n"
"""What stands between two texts of which one has several lines."""


def run_task(cfg: DictConfig, started: float) -> None:
    """Text from a checkpoint or a pretrained model, on standard output or as JSON lines."""
    require_positive(num_samples=cfg.num_samples)
    if cfg.output is not None and Path(cfg.output).is_file() and Path(cfg.output).stat().st_size:
        raise UserError(f"{cfg.output} is there already", "output", "Choose another file, or remove it.")
    prompts, stop = read_prompts(cfg), stop_strings(cfg.stop)
    check_stop(stop)
    stop_tokens = list(cfg.stop_tokens) if OmegaConf.is_list(cfg.stop_tokens) else cfg.stop_tokens
    if stop_tokens is not None and not (
        isinstance(stop_tokens, list) and all(isinstance(token, int) for token in stop_tokens)
    ):
        raise UserError(f"stop_tokens={stop_tokens} is not a list of ids", "stop_tokens", "Write it as [50256].")
    sampling = {name: cfg[name] for name in Sampling._fields if cfg[name] is not None}
    Sampling(**sampling).validate()
    system = read_system(cfg)
    if system.tokenizer is None:
        fix = "Give it one by task=export tokenizer=NAME output=FOLDER, or use GPT.generate in Python."
        raise CheckpointError("the model has no tokenizer", "checkpoint", fix)
    chats = cfg.chat if cfg.chat is not None else cfg.system_message is not None
    if chats:
        ask(system.tokenizer, "Hello", cfg.system_message)  # its errors, now
    length, sizes = system.tokenizer.answer_length, system.gpt.config
    max_new_tokens = cfg.max_new_tokens if cfg.max_new_tokens is not None else length or 200
    require_positive(max_new_tokens=max_new_tokens)
    if length is not None and cfg.temperature is None:
        sampling["temperature"] = 0.0  # there is one right answer
    if (cfg.top_k or 0) > sizes["vocab_size"]:
        console.print(f"top_k={cfg.top_k} exceeds the vocabulary of {sizes['vocab_size']} tokens and has no effect")
    device = torch.device(device_for(cfg.trainer.accelerator))
    set_threads(device, sizes["n_embd"])
    keep_memory()
    optimize_for_inference(merge_adapter(system.to(device).gpt), cfg.dtype)
    if cfg.dtype == "auto" and (figures := layout_rates(device, sizes["n_embd"])):
        others = ", ".join(f"{name} {rate / figures['float32']:.2g}" for name, rate in [*figures.items()][1:])
        console.print(f"probe       speed of float32 1, {others}: weights in {fastest(figures)}")
    if system.tokenizer.picture is not None:
        draw(cfg, system, prompts or [""], sampling)
        return
    options = {"stop": stop, "stop_tokens": stop_tokens, **sampling}

    if prompts is None and (chats or (cfg.chat is None and chat_template_of(system.tokenizer) is not None)):
        converse(system, cfg.system_message, max_new_tokens, options)
        return
    if prompts is None:
        complete_prompts(system, max_new_tokens, options)
        return
    encode = partial(ask, system.tokenizer, system_message=cfg.system_message) if chats else None
    for prompt in prompts:
        tokens = len(encode(prompt) if encode else system.tokenizer.encode(prompt))
        if tokens > system.gpt.block_size:
            console.print(f"a prompt has {tokens:,} tokens; the model sees the last {system.gpt.block_size:,}")
    if cfg.output is not None:
        write(Path(cfg.output), samples(system, prompts, encode, cfg.num_samples, max_new_tokens, options))
        return
    try:
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        if len(prompts) * cfg.num_samples == 1:
            before = "" if encode or not prompts[0] else system.tokenizer.decode(system.tokenizer.encode(prompts[0]))
            sys.stdout.write(before)
            answer(system, encode(prompts[0]) if encode else prompts[0], max_new_tokens, options)
        else:
            spans = False  # whether the text before has several lines
            texts = samples(system, prompts, encode, cfg.num_samples, max_new_tokens, options)
            for n, (_, shown, text) in enumerate(texts):
                spanned, spans = spans, "\n" in f"{shown}{text}"
                sys.stdout.write(f"{SEPARATOR if n and (spanned or spans) else ''}{shown}{text}\n")
                sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `| head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def read_prompts(cfg: DictConfig) -> list[str] | None:
    """The prompts that the command line names; None: a person is to be asked."""
    if cfg.prompt is not None and cfg.prompt_file is not None:
        raise UserError("there are prompt= and prompt_file=", "prompt", "Give one of them.")
    if cfg.prompt is not None:
        return [str(cfg.prompt)]
    if cfg.prompt_file is not None:
        return prompts_of(Path(cfg.prompt_file).expanduser())
    at_a_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    return None if at_a_terminal and cfg.output is None else [""]


def prompts_of(file: Path) -> list[str]:
    """The prompts of a file, in order: its lines, or the field `prompt` of each row of a JSON, CSV or Parquet file.

    Raises UserError for a line or row without one, so that completions can be matched with them by number.
    """
    try:
        if format_of(file) == "text":
            lines = io.StringIO("".join(read_text(file, "prompt_file")), newline=None).read().split("\n")
            rows = [Row(f"line {n}", line if line.strip() else None, "is blank") for n, line in enumerate(lines, 1)]
            rows = rows if lines[-1] else rows[:-1]
        else:
            rows = list(read_rows(file, "prompt", "prompt_file"))
    except UserError as error:
        if error.where in ("encoding", "text_field"):  # there are no such settings here
            fix = "Save it as UTF-8." if error.where == "encoding" else "Name it prompt."
            raise UserError(error.what, "prompt_file", fix) from error
        raise
    if not rows:
        raise UserError(f"{file} holds no prompt", "prompt_file", "Write one a line.")
    for row in rows:
        if row.text is None:
            what = f"{row.place} of {file} has no prompt: it {row.instead}"
            fix = 'Remove it; in a .jsonl file, {"prompt": ""} starts from nothing.'
            raise UserError(what, "prompt_file", fix)
    return [row.text for row in rows if row.text is not None]


def stop_strings(stop: Any) -> list[str]:
    """What `stop=` means: one string or a list of them, in which \\n and \\t stand for a line break and a tab."""
    strings = [] if stop is None else list(stop) if OmegaConf.is_list(stop) else [stop]
    return [str(string).replace("\\n", "\n").replace("\\t", "\t") for string in strings]


def samples(
    system: LanguageModel,
    prompts: list[str],
    encode: Callable[[str], list[int]] | None,
    num_samples: int,
    max_new_tokens: int,
    options: dict[str, Any],
) -> Iterator[tuple[str, str, str]]:
    """For each prompt, `num_samples` times: the prompt as given, as its tokenizer shows it, and the completion.

    encode: the question that a prompt is in a conversation, which isn't shown before its answer; None for plain text.
    """
    assert system.tokenizer is not None
    rows = [prompt for prompt in prompts for _ in range(num_samples)]
    asked: list[Prompt] = [encode(prompt) if encode else prompt for prompt in rows]
    repeats = count_repeats(tuple(prompt_tokens(system.tokenizer, prompt)) for prompt in asked)
    for first in range(0, len(rows), ROWS):
        batch, before = asked[first : first + ROWS], repeats[first : first + ROWS]
        completions = complete(system.gpt, system.tokenizer, batch, max_new_tokens, repeats=before, **options)
        for prompt, completion in zip(rows[first : first + ROWS], completions, strict=True):
            yield prompt, "" if encode else completion.prompt, completion.text


def write(file: Path, texts: Iterator[tuple[str, str, str]]) -> None:
    """Write {"prompt", "completion"} lines, each as soon as it is generated."""
    try:
        with file.open("w", encoding="utf-8") as lines:
            for prompt, _, text in texts:
                lines.write(json.dumps({"prompt": prompt, "completion": text}, ensure_ascii=False) + "\n")
                lines.flush()
    except OSError as error:
        raise write_error(file, error, "output", "Choose another file.") from error

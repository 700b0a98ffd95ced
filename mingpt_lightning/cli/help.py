"""`--help` and `--version`: pages made from the config files themselves, whose comments say what each key does."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from mingpt_lightning import __version__
from mingpt_lightning.cli.config import CONFIG_DIR, program
from mingpt_lightning.cli.trust import declared_configs

WIDTH = 100
GLUE = "\xa0"  # a space at which no line is broken
EXAMPLES = (
    ("", "train the adder and test it"),
    ("model=gpt2 datamodule=adder", "the same with a 12-layer model"),
    ("datamodule=chargpt datamodule.path=book.txt", "your own text by character"),
    ("datamodule=text datamodule.path=book.txt", "the same with byte-level BPE"),
    ("experiment=finetune_gpt2 datamodule.path=book.txt", "fine-tune GPT-2"),
    ("experiment=shakespeare_char", "a recipe"),
    ('task=generate checkpoint=RUN prompt="85+50"', "sample from your model"),
    ("task=generate model=gpt2-pretrained", "asks for prompts"),
    ("task=test checkpoint=RUN", "test it again"),
    ("task=export checkpoint=RUN output=FOLDER", "for transformers"),
    ("task=push checkpoint=RUN repo=USER/NAME", "to the Hugging Face hub"),
    ("task=check model=gpt2", "try a run out first"),
    ("run_dir=RUN resume=auto", "go on with a stopped run"),
    ("-m optimizer.lr=1e-3,3e-4 seed=0,1", "a sweep: every combination"),
)
PAGE = """\
usage: {program} [GROUP=OPTION ...] [KEY=VALUE ...] [-m] [--cfg job]

Train, test and sample GPTs.

{examples}

RUN is a run folder, such as runs/adder/2026-01-31_12-00-00, or a .ckpt file in it.

Groups: choose one option of each with GROUP=OPTION; GROUP=OPTION --help shows its keys.

{groups}

Keys: set any with KEY=VALUE, also in a group (model.n_layer=4, callbacks.samples=null).

  seed=0                     all randomness follows from it
  run_dir=FOLDER             where a run is written; by default runs/<datamodule>/<date_time>
  resume=never               auto resumes what is in run_dir, must insists on it
  checkpoint=RUN             what a task reads; fit starts from its weights
  compile=auto               torch.compile: true, false, or where it pays
  optimized_metric=val/loss  picks the best checkpoint; a sweep compares it

--cfg job prints the whole config, --version this library's version.
Tab completion in bash: eval "$({program} -sc install=bash)"
"""
ORDER = ("task", "datamodule", "model", "optimizer", "scheduler", "trainer", "callbacks", "logger", "experiment")


def page(arguments: Sequence[str]) -> str:
    """The answer to --help: the keys of the choices that the command line names, or an overview."""
    choices = [argument.partition("=") for argument in arguments if re.fullmatch(r"[a-z]+=[\w.-]+", argument)]
    known = [file for group, _, choice in choices for file in files(group, choice)[:1]]
    if known:
        return "\n".join(map(choice_page, known))
    groups = [group for group in ORDER if (CONFIG_DIR / group).is_dir()]
    groups += sorted(path.name for path in CONFIG_DIR.iterdir() if path.is_dir() and path.name not in (*ORDER, "hydra"))
    width = max(len(command) for command, _ in EXAMPLES) + 2
    aligned = [
        (f"  {program()} {command:<{width}}{what}", f"  {program()} {command}  {what}") for command, what in EXAMPLES
    ]
    examples = "\n".join(wide if len(wide) <= WIDTH else narrow for wide, narrow in aligned)
    return PAGE.format(program=program(), examples=examples, groups="\n".join(map(group_line, groups)))


def files(group: str, choice: str = "*") -> list[Path]:
    """The YAML of a group's options, ours and those of packages that declare themselves."""
    return [
        file for folder in (CONFIG_DIR, *declared_configs()) for file in sorted((folder / group).glob(f"{choice}.yaml"))
    ]


def version() -> str:
    """The answer to --version."""
    return f"mingpt-lightning {__version__}"


def group_line(group: str) -> str:
    """A group with its options, wrapped; models with their layers x width, or their parameters."""
    options = []
    for file in files(group):
        text = file.read_text(encoding="utf-8")
        sizes = [re.search(rf"^{name}: (\d+)", text, re.MULTILINE) for name in ("n_layer", "n_embd")]
        size = "x".join(found[1] for found in sizes if found)
        if group == "model" and not size and (found := re.search(r"([\d,.]+ [MB]) parameters", text)):
            size = found[1]
        options.append(f"{file.stem} ({size})".replace(" ", GLUE) if size else file.stem)
    lines = textwrap.wrap(", ".join(options), WIDTH - 14, break_long_words=False, break_on_hyphens=False)
    names = [group, *[""] * len(lines)]
    return "\n".join(f"  {name:<12}{line}".replace(GLUE, " ") for name, line in zip(names, lines, strict=False))


def choice_page(file: Path) -> str:
    """One option of a group, by its file: what it is, and its keys with their defaults and comments."""
    group, choice = file.parent.name, file.stem
    prefix = "" if group in ("task", "experiment") else f"{group}."
    text = file.read_text(encoding="utf-8")
    title = [line.lstrip("# ") for line in text.splitlines() if line.startswith("# ") and "@package" not in line]
    lines = [f"usage: {program()} {group}={choice} [KEY=VALUE ...]", ""]
    lines += [part for line in title for part in textwrap.wrap(line, WIDTH)]
    rows = [(shorten(f"{prefix}{key}={default}"), comment) for key, default, comment in keys(text)]
    width = min(34, max((len(name) for name, _ in rows), default=0)) + 2
    lines += [""] * bool(rows)
    for name, comment in rows:
        wrapped = textwrap.wrap(comment, WIDTH - width - 2) or [""]
        if len(name) >= width and comment:
            lines.append(f"  {name}")
            name = ""
        lines.append(f"  {name:<{width}}{wrapped[0]}".rstrip())
        lines += [f"  {'':<{width}}{rest}" for rest in wrapped[1:]]
    return "\n".join(lines) + "\n"


def shorten(line: str) -> str:
    """A line that is no wider than the page."""
    return line if len(line) <= WIDTH - 2 else f"{line[: WIDTH - 3]}…"


def keys(text: str) -> Iterator[tuple[str, str, str]]:
    """The keys of a config file, also in its sections: dotted name, default, comment."""
    sections: list[str] = []
    for line in text.splitlines():
        found = re.fullmatch(r"((?:  )*)(\w+):(?: (.*?))?(?:\s+# (.*))?", line)
        if not found:
            continue
        indent, name, default, comment = found.groups()
        sections = [*sections[: len(indent) // 2], name]
        hidden = {"task", "defaults", "hydra"} & {sections[0]} or name in ("_target_", "_partial_")
        if default is not None and not hidden:
            yield ".".join(sections), default, comment or ""

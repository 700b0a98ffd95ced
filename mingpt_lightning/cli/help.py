"""`--help` and `--version`: pages made from the config files themselves, whose comments say what each key does."""

import re
import textwrap
from collections.abc import Iterator, Sequence

from mingpt_lightning import __version__
from mingpt_lightning.cli.config import CONFIG_DIR, program

WIDTH = 100
GLUE = "\xa0"  # a space at which no line is broken
EXAMPLES = (
    ("", "train the adder and test it"),
    ("model=gpt2 datamodule=adder", "the same with a 12-layer model"),
    ("datamodule=chargpt datamodule.path=book.txt", "characters of your own text"),
    ("datamodule=text datamodule.path=book.txt", "the same with byte-level BPE"),
    ("experiment=finetune_gpt2 datamodule.path=book.txt", "fine-tune GPT-2 on it"),
    ("experiment=shakespeare_char", "a recipe"),
    ('task=generate checkpoint=RUN prompt="85+50"', "sample from your model"),
    ("task=generate model=gpt2-pretrained", "asks for prompts"),
    ("task=test checkpoint=RUN", "test it again"),
    ("task=export checkpoint=RUN output=FOLDER", "for transformers"),
    ("task=check model=gpt2", "try a run out first"),
    ("run_dir=RUN resume=auto", "go on with a stopped run"),
    ("-m optimizer.lr=1e-3,3e-4 seed=0,1", "a sweep: every combination"),
)
PAGE = """\
usage: {program} [GROUP=OPTION ...] [KEY=VALUE ...] [-m] [--cfg job | --help | --version]

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

--cfg job prints the whole config. Tab completion in bash: eval "$({program} -sc install=bash)"
"""
ORDER = ("task", "datamodule", "model", "optimizer", "scheduler", "trainer", "callbacks", "logger", "experiment")


def page(arguments: Sequence[str]) -> str:
    """The answer to --help: the keys of the choices that the command line names, or an overview."""
    choices = [argument.partition("=") for argument in arguments if re.fullmatch(r"[a-z]+=[\w-]+", argument)]
    known = [(group, choice) for group, _, choice in choices if (CONFIG_DIR / group / f"{choice}.yaml").is_file()]
    pages = [text for group, choice in known if (text := choice_page(group, choice))]
    if pages:
        return "\n".join(pages)
    groups = [group for group in ORDER if (CONFIG_DIR / group).is_dir()]
    groups += sorted(path.name for path in CONFIG_DIR.iterdir() if path.is_dir() and path.name not in (*ORDER, "hydra"))
    width = max(len(command) for command, _ in EXAMPLES) + 2
    examples = "\n".join(f"  {program()} {command:<{width}}{what}" for command, what in EXAMPLES)
    return PAGE.format(program=program(), examples=examples, groups="\n".join(map(group_line, groups)))


def version() -> str:
    """The answer to --version."""
    return f"mingpt-lightning {__version__}"


def group_line(group: str) -> str:
    """A group with its options, wrapped; models with their number of layers and width."""
    options = []
    for file in sorted((CONFIG_DIR / group).glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        sizes = [re.search(rf"^{name}: (\d+)", text, re.MULTILINE) for name in ("n_layer", "n_embd")]
        parameters = re.search(r"([\d,.]+ [MB]) parameters", text) if group == "model" else None
        size = "x".join(found[1] for found in sizes if found) or (
            parameters[1].replace(" ", "\xa0") if parameters else ""
        )
        options.append(f"{file.stem}\xa0({size})" if size else file.stem)
    lines = textwrap.wrap(", ".join(options), WIDTH - 14, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"  {group if number == 0 else '':<12}{line}" for number, line in enumerate(lines)).replace(
        "\xa0", " "
    )


def choice_page(group: str, choice: str) -> str:
    """The keys of one option of a group with their defaults and comments; "" if it has none."""
    prefix = "" if group in ("task", "experiment") else f"{group}."
    text = (CONFIG_DIR / group / f"{choice}.yaml").read_text(encoding="utf-8")
    rows = [(f"{prefix}{key}={default}", comment) for key, default, comment in keys(text)]
    if not rows:
        return ""
    about = [line.lstrip("# ") for line in text.splitlines() if line.startswith("# ") and "@package" not in line]
    width = min(34, max(len(name) for name, _ in rows)) + 2
    lines = [f"usage: {program()} {group}={choice} [KEY=VALUE ...]", "", *textwrap.wrap(" ".join(about), WIDTH), ""]
    for name, comment in rows:
        wrapped = textwrap.wrap(comment, WIDTH - width - 2) or [""]
        lines.append(f"  {name:<{width}}{wrapped[0]}".rstrip())
        lines += [f"  {'':<{width}}{rest}" for rest in wrapped[1:]]
    return "\n".join(lines) + "\n"


def keys(text: str) -> Iterator[tuple[str, str, str]]:
    """The top-level keys of a config file: name, default, comment."""
    for line in text.splitlines():
        found = re.fullmatch(r"(\w+): (.*?)(?:\s+# (.*))?", line)
        if found and found[1] not in ("task", "defaults", "hydra", "_target_", "_partial_"):
            yield found[1], found[2], found[3] or ""

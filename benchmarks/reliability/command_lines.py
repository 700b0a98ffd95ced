"""Random command lines, mostly wrong: choices, keys and values of the configs, with and without typos."""

import random
import string
from typing import Any

import yaml

from benchmarks.common import ROOT

CONFIGS = ROOT / "configs"
SMALL = (
    *("model.n_layer=1", "model.n_head=2", "model.n_embd=16", "trainer.max_steps=2", "trainer.val_check_interval=1"),
    *("trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "trainer=cpu"),
)
"""Keeps valid commands short."""

NASTY = [
    *("0", "-1", "1", "2", "3", "7", "16", "1000000", "1e3", "1e-3", "-0.5", "0.5", "1.5", "1e400", "nan", "inf"),
    *("null", "true", "false", "", "''", "~", "???", "abc", "[]", "{}", "[1]", "[0.5,0.5]", "[a,b]", "{a: 1}"),
    *("${seed}", "${nothing}", "${oc.env:HOME}", "${oc.env:NOTHING_HERE}", "/dev/null", "/", ".", "..", "a b", "a,b"),
    *("a=b", "é", "\\", "'", '"', "(", ")", "$(ls)", "%s", "-", "--", "os.system", "builtins.eval", "torch.load"),
    *("99999999999999999999", "-99999999999999999999", "0x10", "010", "1_000", "None", "True", "no", "off", "12:30"),
]
TASKS = ("fit", "fit", "fit", "fit", "validate", "test", "generate", "export")


def groups() -> dict[str, list[str]]:
    """The config groups and their choices."""
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in sorted(CONFIGS.iterdir())
            if folder.is_dir() and folder.name != "hydra"}  # fmt: skip


def keys() -> list[str]:
    """The keys of all choices of all groups."""
    found = {
        str(key) for key in yaml.safe_load((CONFIGS / "config.yaml").read_text()) if key not in ("defaults", "hydra")
    }
    for group, choices in groups().items():
        for choice in choices:
            content: Any = yaml.safe_load((CONFIGS / group / f"{choice}.yaml").read_text()) or {}
            prefix = "" if group in ("task", "experiment") else f"{group}."
            for key, value in content.items():
                if key in ("defaults", "hydra"):
                    continue
                found.add(f"{prefix}{key}")
                if isinstance(value, dict):
                    found |= {f"{prefix}{key}.{below}" for below in value}
    return sorted(found)


GROUPS, KEYS = groups(), keys()


def typo(rng: random.Random, word: str) -> str:
    """A word with one letter added, removed, replaced or swapped with the next."""
    place = rng.randrange(max(1, len(word)))
    letter = rng.choice(string.ascii_lowercase + "_.=")
    match rng.randrange(4):
        case 0:
            return word[:place] + letter + word[place:]
        case 1:
            return word[:place] + word[place + 1 :]
        case 2:
            return word[:place] + letter + word[place + 1 :]
        case _:
            return word[:place] + word[place : place + 2][::-1] + word[place + 2 :]


def command_line(rng: random.Random) -> list[str]:
    """Arguments for `main.py`: a few valid ones, and one to three that are probably wrong."""
    arguments = [f"task={rng.choice(TASKS)}", *SMALL] if rng.random() < 0.9 else []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        match rng.randrange(8):
            case 0:
                group = rng.choice(sorted(GROUPS))
                arguments.append(f"{group}={rng.choice(GROUPS[group])}")
            case 1:
                group = rng.choice(sorted(GROUPS))
                arguments.append(typo(rng, f"{group}={rng.choice(GROUPS[group])}"))
            case 2:
                arguments.append(typo(rng, f"{rng.choice(KEYS)}={rng.choice(NASTY)}"))
            case 3:
                arguments.append(rng.choice(["+", "~", "++"]) + f"{rng.choice(KEYS)}={rng.choice(NASTY)}")
            case 4:
                arguments.append(rng.choice(["--", "-x", "--cfg", "-m", "--helpp", "-c", "x", "=", "~", "+", "a.b.c"]))
            case _:
                arguments.append(f"{rng.choice(KEYS)}={rng.choice(NASTY)}")
    if not arguments or all(not item.startswith("trainer.max_steps") for item in arguments):
        arguments += SMALL
    return [*arguments, "trainer.max_time=00:00:00:03"] if rng.random() < 0.9 else arguments

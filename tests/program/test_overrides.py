"""The command line: text arrives as typed, arguments of a class are keys, and a typo is named wherever it stands."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from mingpt_lightning.cli.build import build
from mingpt_lightning.cli.overrides import literal, quoted
from mingpt_lightning.cli.own_settings import written
from tests.common import PRETRAINED, SMALL, Cli, summary

TEXT = (
    *("prompt", "run_dir", "checkpoint", "output", "prompt_file", "stop", "model.name", "datamodule.path"),
    *(
        "datamodule.text_field",
        "datamodule.cache_dir",
        "datamodule.on_unknown",
        "datamodule.url",
        "datamodule.revision",
    ),
    *("callbacks.checkpoint.dirpath", "callbacks.early_stopping.monitor", "logger.tensorboard.save_dir"),
    *("trainer.default_root_dir", "trainer.accelerator", "+datamodule.text_field", "++datamodule.text_field"),
)
PIECES = [
    *"a1 \t'\"\\,=()[]{}:;|&$#@!?*+-~%^<>./内é�🤗",
    "null",
    "true",
    "1e3",
    "???",
    "${",
    "\\'",
    "0x1",
    "[a,b]",
    "a=b",
]


def typed(count: int) -> list[str]:
    """Strings that people could type, and more."""
    source = random.Random(0)
    fixed = [
        "null",
        "true",
        "5",
        "-1.5",
        "'hello'",
        '"hello"',
        "abc\\",
        "\\",
        "a,b",
        "a = b",
        "???",
        "nan",
        "${x",
        "\\${x",
        "\\\\${x y}'",
        "it's",
    ]
    return fixed + ["".join(source.choices(PIECES, k=source.randint(1, 8))) for _ in range(count)]


def value_of(override: str) -> Any:
    """What a config holds of a value that Hydra has read."""
    found = OverridesParser.create().parse_override(override)
    assert not found.is_sweep_override(), override
    value = found.value()
    plain = value if isinstance(value, list | str) or value is None else str(value)
    return OmegaConf.to_container(OmegaConf.create({"x": plain}), resolve=True)["x"]  # type: ignore[index, call-overload]


def test_text_from_a_checkpoint_arrives_as_it_was() -> None:
    for text in [*typed(100), "${oc.env:HOME}", "\\${oc.env:HOME}", "\\\\${oc.create:{a:1}}"]:
        assert value_of(f"++datamodule.path={written(text)}") == text
        if text != "???":
            node = OmegaConf.create({"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": literal(text)})
            assert build(node, "logger").save_dir == text


@pytest.mark.parametrize("key", TEXT)
def test_text_arrives_as_typed(key: str) -> None:
    for text in typed(60):
        nullable = text == "null" and key not in ("prompt", "run_dir", "datamodule.text_field") and key[0] != "+"
        listed = key in ("stop", "datamodule.path") and text.startswith("[")
        if not listed and not nullable and text.strip():
            expected = text
            found = value_of(quoted(f"{key}={text}"))
            assert found == expected or (text == "null" and found is None), (key, text)


@pytest.mark.parametrize("key", ["prompt", "datamodule.text_field", "datamodule.path"])
def test_text_in_a_sweep_arrives_as_typed(key: str) -> None:
    for text in typed(60):
        if not set(text) & set(",'\"[](){}") and text.strip() == text:
            override = OverridesParser.create().parse_override(quoted(f"{key}={text},other", sweep=True))
            values = [value_of(f"{key}={value}") for value in override.sweep_string_iterator()]
            assert values in ([text, "other"], [None, "other"]), text


@pytest.mark.parametrize(
    "argument",
    [
        *("trainer.max_steps=5", "optimizer.lr=1e-3", "optimizer.betas=[0.9,0.95]", "trainer.devices=2", "seed=1"),
        *("callbacks.samples=null", "checkpoint=null", "compile=false", "model=gpt2", "datamodule.split=[0.8,0.1,0.1]"),
        *("stop=[a,b]", "datamodule.path=[a.txt,b.txt]", "trainer.precision=16", "model.dropout=[0.1,0.0,0.1]"),
        *("callbacks={}", "trainer.max_time={hours:1}", "hydra.sweep.dir=x", "~logger", "model.tie_embeddings=false"),
    ],
)
def test_numbers_lists_and_the_rest_are_as_hydra_has_them(argument: str) -> None:
    assert quoted(argument) == argument


def test_a_sweep_of_numbers_choices_and_ranges_is_hydras() -> None:
    for argument in ("optimizer.lr=1e-3,3e-4", "model=gpt-nano,gpt-micro", "seed=range(1,3)", "seed=choice(1,2)"):
        assert quoted(argument, sweep=True) == argument
    assert quoted("datamodule.path=a b (1).txt,'c,d'", sweep=True) == "datamodule.path='a b (1).txt','c,d'"


def test_odd_names_through_the_whole_program(cli: Cli, model: Any) -> None:
    from mingpt_lightning.completion import complete

    gpt, tokenizer = model
    for prompt in ("null", "'the cat'", "the cat\\", "???", "${seed}", "the (cat), [sat]: on=the 'mat"):
        code, out, err = cli("task=generate", *PRETRAINED, "max_new_tokens=5", f"prompt={prompt}")
        (expected,) = complete(gpt, tokenizer, [prompt], 5, seed=0)
        assert (code, out) == (0, f"{prompt}{expected.text}\n"), err
    name = "r/sweep (1), it's = odd"
    short = ("trainer.max_steps=1", "trainer.val_check_interval=1", "datamodule=sort", *SMALL, "trainer=cpu")
    assert cli("-m", "seed=1,2", *short, f"run_dir={name}")[0] == 0
    assert summary(f"{name}/1")["steps"] == 1
    records = [json.dumps({"内容": "the cat sat on the mat. " * 20}, ensure_ascii=False) for _ in range(20)]
    Path("odd, file='1'.jsonl").write_text("\n".join(records), encoding="utf-8")
    text = ("datamodule=text", "datamodule.block_size=8", "datamodule.cache_dir=缓存, 1", "datamodule.text_field=内容")
    code, _, err = cli(
        *text, "datamodule.path=odd, file='1'.jsonl", *short[:2], *SMALL, "trainer=cpu", "run_dir=null (1)"
    )
    assert code == 0, err
    assert Path("缓存, 1").is_dir()


def test_an_interpolation_in_a_path_is_one(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    short = ("trainer.max_steps=1", "trainer.val_check_interval=1", "datamodule=sort", *SMALL, "trainer=cpu")
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    assert cli(*short, "run_dir=${oc.env:SCRATCH}/x y")[0] == 0
    assert summary("scratch/x y")["steps"] == 1
    monkeypatch.delenv("SCRATCH")
    code, _, err = cli(*short, "run_dir=${oc.env:SCRATCH}/x")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "SCRATCH" in err
    assert {path.name for path in Path().iterdir()} == {"scratch"}


KEYS = [
    ("model.activation=relu", lambda cfg: cfg.model.activation == "relu"),
    ("model.bias=false", lambda cfg: cfg.model.bias is False),
    ("optimizer.amsgrad=true", lambda cfg: cfg.optimizer.amsgrad is True),
    ("callbacks.early_stopping.min_delta=0.1", lambda cfg: cfg.callbacks.early_stopping.min_delta == 0.1),
    ("scheduler.warmup=0.2", lambda cfg: cfg.scheduler.warmup == 0.2),
]
REFUSED = [
    ("model.activation=mish", "model.activation=mish is not possible (model.activation). Choose one of: gelu"),
    ("model.activaton=relu", "Did you mean 'activation'?"),
    ("model.bias=maybe", "model.bias=maybe is not possible (model.bias). Use true or false or qkv."),
    ("model.norm_eps=small", "Use a number."),
    ("model.vocab_size=5", "unknown key 'model.vocab_size'"),
    ("optimizer.amsgrad=3", "optimizer.amsgrad=3 is not possible"),
    ("optimizer.amsgrda=true", "Did you mean 'amsgrad'?"),
    ("callbacks.early_stopping.strict=3", "Use true or false"),
    ("system.z=3", "unknown key 'system.z'"),
    ("lr=1e-3", "Did you mean 'optimizer.lr'?"),
    ("+lr=1e-3", "Did you mean 'optimizer.lr'?"),
    ("batch_size=3", "Did you mean 'datamodule.batch_size'?"),
]


@pytest.mark.parametrize(("key", "arrived"), KEYS)
def test_every_argument_of_a_class_is_a_key(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, key: str, arrived: Callable[[DictConfig], bool]
) -> None:
    from mingpt_lightning.cli import fit

    seen: list[DictConfig] = []
    monkeypatch.setattr(fit, "run_task", lambda cfg, started: seen.append(cfg))
    assert cli("datamodule=sort", key)[0] == 0
    assert cli("-m", "datamodule=sort", f"{key},{key.partition('=')[2]}")[0] == 0
    assert len(seen) == 3
    assert all(map(arrived, seen))


@pytest.mark.parametrize(("key", "message"), REFUSED)
def test_a_wrong_key_or_value_is_one_line(cli: Cli, key: str, message: str) -> None:
    code, _, err = cli(key)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert message in err
    assert not Path("runs").exists()


GLOBAL = "# @package _global_\n"
EXPERIMENTS = [
    (GLOBAL + "optimzer:\n  lr: 0.1\n", "unknown key 'optimzer' (experiment=mine). Did you mean 'optimizer'?"),
    (GLOBAL + "seeed: 3\n", "Did you mean 'seed'?"),
    (GLOBAL + "max_steps: 3\n", "Did you mean 'trainer.max_steps'?"),
    (GLOBAL + "trainer:\n  max_stepss: 3\n", "unknown key 'trainer.max_stepss'"),
    (GLOBAL + "model:\n  n_layers: 3\n", "Did you mean 'n_layer'?"),
    (GLOBAL + "datamodule:\n  batchsize: 3\n", "Did you mean 'batch_size'?"),
    (GLOBAL + "callbacks:\n  early_stoping:\n    patience: 3\n", "Did you mean 'early_stopping'?"),
    ("trainer:\n  max_steps: 3\n", "Make '# @package _global_' the first line"),
]


@pytest.mark.parametrize(("text", "message"), EXPERIMENTS)
def test_a_typo_in_a_recipe_is_named(cli: Cli, text: str, message: str) -> None:
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/mine.yaml").write_text(text)
    for more in ((), ("seed=1",)):
        code, _, err = cli("--config-dir", "conf", "experiment=mine", *more)
        assert (code, len(err.splitlines())) == (2, 1), err
        assert message in err
    assert not Path("runs").exists()

"""A mistake of the user ends in one line that says what to do, and leaves nothing behind."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file, save_file

from mingpt_lightning import GPT, BPETokenizer, CharTokenizer, LanguageModel
from mingpt_lightning.datamodule import SequenceDataModule
from projects.adder.datamodule import AdderDataModule
from tests.common import PRETRAINED, TINY, Canary, Cli, MakeGPT

RUNS = [
    (("compile=perhaps",), 2, "compile=perhaps is not possible (compile). Use true, false or auto."),
    (
        ("model=gpt-modern-pico", "model.position=rotaryy"),
        2,
        "(model.position). Did you mean 'rotary'?",
    ),
    (("optimizer=muon", "optimizer.lr=0.0"), 2, "optimizer.lr=0.0 is out of range (optimizer.lr). Use above 0."),
    (("model=gtp2",), 2, "Did you mean 'gpt2'?"),
    (("model.n_layerr=4",), 2, "Did you mean 'n_layer'?"),
    (("modle=gpt2",), 2, "Did you mean 'model'?"),
    (("datamodule=sort", "datamodule.lenght=4"), 2, "Did you mean 'length'?"),
    (("callbacks.early_stoping=null",), 2, "Did you mean 'early_stopping'?"),
    (("experiment=nothing",), 2, "shakespeare_char"),
    (("task=fly",), 2, "Choose one of: check, export, fit"),
    (("+model.nlayer=3",), 2, "unknown key 'model.nlayer'"),
    (("+colour=3",), 2, "unknown key 'colour'"),
    (("trainer.max_steps=abc",), 2, "is not an integer"),
    (("trainer.max_steps=1e3",), 2, "is not an integer"),
    (("trainer.max_steps=1,2",), 2, "Add -m for a sweep"),
    (("trainer.limit_val_batches=abc",), 2, "limit_val_batches"),
    (("trainer.accelerator=abacus",), 2, "abacus"),
    (("trainer.precision=12",), 2, "recision"),
    (("model=5",), 2, "model=5 is not possible (model). Name one of its choices."),
    (("model.n_embd=50",), 2, "Try n_embd=48 or 56"),
    (("model.n_layer=0",), 2, "n_layer=0 is not a positive integer"),
    (("model.n_head=-1",), 2, "n_head=-1"),
    (("model.dropout=1.5",), 2, "[0, 1)"),
    (("datamodule.batch_size=0",), 2, "batch_size=0"),
    (("datamodule.ndigit=0",), 2, "Use 1 to 18"),
    (("datamodule=sort", "datamodule.length=-2"), 2, "length=-2"),
    (("seed=-1",), 2, "seed=-1"),
    (("seed=null",), 2, "seed=null is not possible"),
    (("model=null",), 2, "model=null is not possible (model). Name one of its choices."),
    (("callbacks=null",), 2, "Use callbacks=none."),
    (("model.dropout=nan",), 2, "model.dropout=nan is not a finite number"),
    (("optimizer.lr=0",), 2, "optimizer.lr=0 is out of range (optimizer.lr). Use above 0."),
    (("optimizer.betas=[0.9,1.5]",), 2, "this optimizer cannot be made: Invalid beta"),
    (("scheduler.warmup=2",), 2, "scheduler.warmup=2 is not a fraction"),
    (("trainer.accumulate_grad_batches=0",), 2, "Use 1 or more"),
    (("trainer.accumulate_grad_batches=100000",), 2, "is more than the 140 batches of an epoch"),
    (("trainer.check_val_every_n_epoch=1", "trainer.val_check_interval=999"), 2, "=999 is more than the 140 batches"),
    (("trainer.val_check_interval=0",), 2, "trainer.val_check_interval=0 is out of range"),
    (("trainer.max_steps=0",), 2, "trainer.max_steps=0 trains nothing"),
    (("trainer.max_steps=null",), 2, "trainer.max_steps=null is not possible"),
    (("trainer.max_epochs=many",), 2, "trainer.max_epochs=many is not an integer"),
    (("trainer.gradient_clip_val=-1",), 2, "Use 0 or more"),
    (("trainer.limit_train_batches=0",), 2, "Use above 0"),
    (("trainer.devices=abc",), 2, "(trainer.devices=abc)"),
    (("callbacks.samples.every_n_validations=0",), 2, "every_n_validations=0"),
    (("callbacks.checkpoint.every_n_train_steps=0",), 2, "every_n_train_steps=0"),
    (("callbacks.checkpoint.mode=mid",), 2, "Use min or max"),
    (("optimized_metric=train/loss",), 2, "Choose one of: val/loss"),
    (("optimizer._target_=os.system",), 2, "os.system is not allowed (optimizer._target_)"),
    (("trainer.max_time=${nothing}",), 2, "nothing"),
    (("callbacks.samples=${nothing}",), 2, "nothing"),
    (("datamodule=chargpt", "datamodule.path=white.txt"), 2, "there is no text in white.txt"),
    (("resume=maybe",), 2, "Use auto, must or never"),
    (("resume=must",), 3, "there is nothing to resume"),
    (("--nonsense",), 2, "unknown option --nonsense"),
    (("nonsense",), 2, "nonsense"),
    (("--cfg", "nothing"), 2, "--cfg"),
    (("run_dir=/dev/null/x",), 2, "cannot write /dev/null/x"),
    (("optimizer.lr=-1",), 2, "-1"),
    (("+optimizer.speed=3",), 2, "speed"),
    (("optimized_metric=val/beauty",), 2, "val/beauty"),
    (("datamodule=chargpt", "datamodule.path=missing.txt"), 2, "missing.txt does not exist"),
    (("datamodule=chargpt", "datamodule.path=empty.txt"), 2, "is empty"),
    (("datamodule=chargpt", "datamodule.path=latin.txt"), 2, "is not UTF-8: byte 3"),
    (("datamodule=chargpt", "datamodule.path=short.txt"), 2, "too few for block_size=64"),
    (("datamodule=chargpt", "datamodule.path=."), 2, "is a folder"),
    (("datamodule=chargpt", "datamodule.split=[0.5,0.1,0.1]"), 2, "does not add up to 1"),
    (("datamodule=chargpt", "datamodule.block_size=0"), 2, "block_size=0"),
    (("run_dir=file.txt",), 2, "file.txt"),
    (("run_dir=full",), 2, "already holds a run"),
    (("task=test",), 2, "needs a checkpoint"),
    (("task=generate", "checkpoint=nowhere"), 3, "nowhere does not exist"),
    (("task=generate", "checkpoint=garbage.ckpt"), 3, "garbage.ckpt is damaged: it is no checkpoint"),
    (("task=generate", "checkpoint=empty.txt"), 3, "empty.txt is damaged: it is empty"),
    (("task=generate", "checkpoint=foreign.ckpt"), 3, "is not a checkpoint of mingpt_lightning"),
    (("task=generate", "checkpoint=pickle.ckpt"), 3, "pickle.ckpt holds code ("),
    (("task=generate", "checkpoint=https://example.org/a.ckpt"), 3, "URL"),
    (("task=generate", "checkpoint=."), 3, "holds no"),
    (("task=generate", "checkpoint=python.ckpt", "prompt=a", "temperature=warm"), 2, "temperature=warm"),
    (("task=test", "checkpoint=python.ckpt"), 3, "does not say which data"),
    (("-m", "model=null"), 2, "model=null is not possible (model). Name one of its choices."),
    (("~logger", "seed=1,2"), 2, "seed=1,2 has a comma"),
    (("--config-name", "nothing"), 2, "nothing"),
    # The place that an error names is a key of the command line, wherever it was raised.
    (("datamodule=text", "datamodule.tokenizer=./nothing"), 3, "./nothing does not exist (datamodule.tokenizer)"),
    (("datamodule=chargpt", "datamodule.block_size=9999999"), 2, "(datamodule.block_size)"),
    (("callbacks.checkpoint.dirpath=/dev/null/x",), 2, "(callbacks.checkpoint.dirpath)"),
    (("trainer.max_time=00:00:00:05", "trainer.max_steps=-1"), 2, "(trainer.max_steps)"),
    (("task=check", "callbacks.early_stopping.monitor=val/beauty"), 2, "(callbacks.early_stopping.monitor)"),
    (("datamodule=chargpt", "datamodule.split=[0.9,0,0.1]"), 2, "trainer.limit_val_batches=0."),
    (("datamodule=chargpt", "datamodule.split=[0.9,0,0.1]"), 2, "in the val split (datamodule.split)"),
]

PROMPTS = [
    (("prompt=a", "prompt_file=lines.txt"), 2, "Give one of them"),
    (("prompt_file=missing.txt",), 2, "missing.txt does not exist"),
    (("prompt_file=latin.txt",), 2, "not UTF-8: byte 3"),
    (("prompt_file=blank.txt",), 2, "line 1 of blank.txt has no prompt: it is blank"),
    (("num_samples=0",), 2, "num_samples=0"),
    (("max_new_tokens=0.5",), 2, "max_new_tokens=0.5"),
    (("max_new_tokens=-3",), 2, "max_new_tokens=-3"),
    (("max_new_tokens=0",), 2, "max_new_tokens=0"),
    *(((f"temperature={value}",), 2, f"temperature={value}") for value in (-1, "nan", "inf", "warm")),
    *(((f"top_k={value}",), 2, f"top_k={value}") for value in (-1, 1.5)),
    *(((f"top_p={value}",), 2, f"top_p={value}") for value in (0, -0.1, 1.5, "nan")),
    (("repetition_penalty=0",), 2, "repetition_penalty=0"),
    (("stop=['']",), 2, "stop string is empty"),
    (("stop_tokens=5",), 2, "Write it as [50256]"),
    (("stop_tokens=[a]",), 2, "Write it as [50256]"),
    (("model.dropout=2",), 2, "[0, 1)"),
    (("dtype=float63",), 2, "Did you mean 'float32'?"),
    (("output=nowhere/o.jsonl",), 4, "cannot write nowhere/o.jsonl"),
    (("model.name=./missing",), 3, "./missing does not exist"),
    (("model.name=bert",), 3, "model_type=bert"),
    (("model.name=nan",), 3, "NaN"),
    (("model.name=corrupt",), 3, "model.safetensors"),
    (("model.name=pickle",), 3, "pytorch_model.bin"),
    (("model.name=no-tokenizer",), 3, "no-tokenizer holds no tokenizer.json"),
    (("model.n_layer=3",), 2, "unknown key 'model.n_layer'"),
    (("checkpoint=gpt",), 3, "Use model=gpt2-pretrained model.name=gpt"),
]


@pytest.fixture(scope="module")
def spoilt(make_gpt: MakeGPT, saved_model: tuple[Path, BPETokenizer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files and folders with one thing wrong in each; to be copied."""
    folder = tmp_path_factory.mktemp("spoilt")
    for name, content in {
        **{"empty.txt": b"", "white.txt": b" \n" * 999, "latin.txt": "abcé".encode("latin-1") * 999},
        **{"short.txt": b"short but fine", "file.txt": b"not a folder", "garbage.ckpt": b"PK garbage" * 99},
        **{"full/checkpoints/last.ckpt": b"precious", "lines.txt": b"a\nb\n", "blank.txt": b" \n\n"},
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    torch.save({"weights": torch.zeros(3)}, folder / "foreign.ckpt")
    torch.save({"weights": Canary(Path("canary"))}, folder / "pickle.ckpt")
    system = LanguageModel(GPT(2, 4, n_layer=1, n_head=1, n_embd=4), tokenizer=CharTokenizer(characters="ab"))
    ours: dict = {"state_dict": system.state_dict(), "global_step": 0}
    system.on_save_checkpoint(ours)
    torch.save(ours, folder / "python.ckpt")

    good, tokenizer = saved_model
    for name in ("gpt", "bert", "corrupt", "pickle", "no-tokenizer", "nan"):
        shutil.copytree(good, folder / name)

    def change(file: str, by: Callable[[bytes], bytes]) -> None:
        (folder / file).write_bytes(by((folder / file).read_bytes()))

    change("bert/config.json", lambda content: content.replace(b'"gpt2"', b'"bert"'))
    change("corrupt/model.safetensors", lambda content: content[:999])
    (folder / "pickle/model.safetensors").unlink()
    torch.save({"wte.weight": Canary(Path("canary"))}, folder / "pickle/pytorch_model.bin")
    shutil.rmtree(folder / "no-tokenizer")
    make_gpt(tokenizer.vocab_size, block_size=32).save_pretrained(folder / "no-tokenizer")
    weights = load_file(folder / "nan/model.safetensors")
    weights["transformer.ln_f.weight"][0] = torch.nan
    save_file(weights, folder / "nan/model.safetensors", metadata={"format": "pt"})
    return folder


def refusal(cli: Cli, spoilt: Path, arguments: tuple[str, ...], code: int, message: str) -> str:
    """What is said of a mistake, to stderr alone, after nothing was run or left behind."""
    shutil.copytree(spoilt, ".", dirs_exist_ok=True)
    actual, out, err = cli(*arguments)
    assert actual == code, err
    assert message in err
    assert out == ""
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
    assert not Path("canary").exists()
    assert not Path("runs").exists(), "a mistake leaves a run folder behind"
    assert Path("full/checkpoints/last.ckpt").read_bytes() == b"precious"
    return err


@pytest.mark.parametrize(("arguments", "code", "message"), RUNS, ids=[" ".join(case[0]) for case in RUNS])
def test_a_mistake_is_one_line(cli: Cli, spoilt: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    extra = TINY[3:] if arguments[0] in ("optimized_metric=val/beauty", "run_dir=file.txt") else ()
    refusal(cli, spoilt, (*arguments, *extra), code, message)


@pytest.mark.parametrize(("arguments", "code", "message"), PROMPTS, ids=[" ".join(case[0]) for case in PROMPTS])
def test_a_mistake_in_generating_is_one_line(
    cli: Cli, spoilt: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    given = () if any("prompt" in argument for argument in arguments) else ("prompt=the",)
    err = refusal(cli, spoilt, ("task=generate", *PRETRAINED, *given, *arguments), code, message)
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu(cli):
    for arguments in (["trainer=gpu"], ["trainer.accelerator=gpu"]):
        code, _, err = cli(*arguments)
        assert code == 2
        assert "there is no GPU here" in err


def test_compiling_without_a_compiler_is_a_mistake(cli, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    code, _, err = cli(*TINY, "trainer=cpu", "compile=true")
    assert code == 2
    assert err.splitlines()[-1] == (
        "error: torch.compile needs a C++ compiler (compile). Install g++, or use compile=false."
    )


def test_a_hub_that_cannot_be_reached(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    code, _, err = cli("task=generate", "model=gpt2-pretrained", "prompt=a")
    assert code == 4
    for part in ("cannot fetch config.json of gpt2", str(tmp_path), "HF_HUB_OFFLINE", "local folder", "HF_HOME"):
        assert part in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("datamodule=adder",), "gpt has 274 tokens and the data has 10"),
        (("datamodule=text", "datamodule.path=book.txt", "datamodule.vocab_size=260"), "datamodule.tokenizer=gpt"),
        (("datamodule=text", "datamodule.tokenizer=gpt", "datamodule.block_size=50"), "more than the 32 positions"),
    ],
)
@pytest.mark.usefixtures("model", "book")
def test_data_that_a_pretrained_model_cannot_read(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    for task in ("fit", "test"):
        code, _, err = cli(f"task={task}", *PRETRAINED, *arguments)
        assert code == 2
        assert message in err
        assert "Traceback" not in err
        assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("lr=1e-3", "optimizer.lr"),
        ("batch_size=8", "datamodule.batch_size"),
        ("n_layer=3", "model.n_layer"),
        ("max_steps=5", "trainer.max_steps"),
    ],
)
def test_a_key_without_its_section_is_named_with_it(cli, given, meant):
    code, _, err = cli(given)
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"Did you mean '{meant}'?" in err


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_dataset_of_another_form_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    usual = AdderDataModule.dataset
    dicts = [{"input_ids": [1, 2, 3], "labels": [2, 3, 4]}] * 9
    monkeypatch.setattr(AdderDataModule, "dataset", lambda self, part: dicts if part == split else usual(self, part))
    code, _, err = cli(*TINY, "run_dir=run")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "error: the examples of list are a dict of input_ids, labels (dataset). Expected of dataset[index]: " in err
    assert not Path("run").exists()


def test_a_datamodule_of_another_kind_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(**_: Any) -> pl.LightningDataModule:
        return pl.LightningDataModule()

    plain.__module__, plain.__qualname__ = "projects.adder.datamodule", "plain"
    for name, value, message in (
        ("AdderDataModule.dataset", SequenceDataModule.dataset, "AdderDataModule has no dataset(split) (dataset)"),
        ("AdderDataModule", plain, "AdderDataModule is not derived from SequenceDataModule (datamodule._target_)"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"projects.adder.datamodule.{name}", value)
            code, _, err = cli(*TINY, "run_dir=run")
        assert (code, message in err, len(err.splitlines())) == (2, True, 1), err

"""task=generate and task=export, from runs and pretrained models; prompts by argument, file and keyboard."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mingpt_lightning import GPT, BPETokenizer, CharTokenizer, LanguageModel
from mingpt_lightning.completion import complete
from tests.common import ROOT

TEXT = "the cat sat on the mat.\nthe dog sat on the log.\n" * 9
PRETRAINED = ("model=gpt2-pretrained", "model.name=gpt")
GENERATE = ("task=generate", *PRETRAINED, "max_new_tokens=12")
FIT = ("trainer.max_steps=2", "trainer.val_check_interval=1", "model.n_layer=1", "model.n_head=2", "model.n_embd=16")

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(cli: Cli, make_gpt: Callable[..., GPT]) -> tuple[GPT, BPETokenizer]:
    """A pretrained model in the folder `gpt`, and the same in Python."""
    tokenizer = BPETokenizer.train([TEXT], 274)
    gpt = make_gpt(tokenizer.vocab_size, block_size=32, scale=2.0)
    gpt.save_pretrained("gpt", tokenizer)
    return gpt, tokenizer


def test_a_pretrained_model_writes_prompt_and_completion(cli: Cli, model: tuple[GPT, BPETokenizer]) -> None:
    before = set(Path().rglob("*"))
    code, out, err = cli(*GENERATE, "prompt=the cat, it's")
    (expected,) = complete(*model, ["the cat, it's"], 12, seed=0)
    assert (code, out, err) == (0, f"the cat, it's{expected.text}\n", "")
    assert set(Path().rglob("*")) == before


def test_every_option_arrives(cli: Cli, model: tuple[GPT, BPETokenizer]) -> None:
    arguments = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 5}
    code, out, _ = cli(*GENERATE, "prompt=the", "num_samples=3", *(f"{k}={v}" for k, v in arguments.items()))
    assert code == 0
    assert out == "".join(f"the{sample.text}\n" for sample in complete(*model, ["the"] * 3, 12, **arguments))


@pytest.mark.parametrize(
    ("argument", "strings"),
    [("stop=t", ["t"]), ("stop=[a,'e']", ["a", "e"]), (r"stop=\n", ["\n"]), ("stop=it's, [x]", ["it's, [x]"])],
)
def test_stop_strings(cli: Cli, model: tuple[GPT, BPETokenizer], argument: str, strings: list[str]) -> None:
    for number in (1, 4):
        code, out, _ = cli(*GENERATE, "max_new_tokens=60", "prompt=the", argument, f"num_samples={number}")
        assert code == 0
        assert out == "".join(f"the{s.text}\n" for s in complete(*model, ["the"] * number, 60, seed=0, stop=strings))


def test_a_file_of_prompts_becomes_lines_of_json(cli: Cli, model: tuple[GPT, BPETokenizer]) -> None:
    prompts = [f"the cat {i}" + " sat" * (i % 7) for i in range(20)]
    Path("prompts.txt").write_text("\n\n".join(prompts) + "\n", encoding="utf-8")
    code, out, _ = cli(*GENERATE, "prompt_file=prompts.txt", "num_samples=2", "output=o.jsonl")
    assert (code, out) == (0, "")
    lines = [json.loads(line) for line in Path("o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["prompt"] for line in lines] == [prompt for prompt in prompts for _ in range(2)]
    alone = complete(*model, [prompts[13]] * 2, 12, seed=0)
    assert [line["completion"] for line in lines[26:28]] == [sample.text for sample in alone]


def test_many_samples_are_all_different_and_come_in_batches(cli: Cli, model: tuple[GPT, BPETokenizer]) -> None:
    code, out, _ = cli(*GENERATE, "prompt=the", "num_samples=50", "max_new_tokens=20", "output=o.jsonl")
    assert (code, out) == (0, "")
    texts = [json.loads(line)["completion"] for line in Path("o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(set(texts)) == 50
    assert texts == [sample.text for sample in complete(*model, ["the"] * 50, 20, seed=0)]


def test_no_prompt_starts_from_nothing(cli: Cli, model: tuple[GPT, BPETokenizer]) -> None:
    (expected,) = complete(*model, [""], 12, seed=0)
    for arguments in ((), ("prompt=",)):
        assert cli(*GENERATE, *arguments)[:2] == (0, expected.text + "\n")


def test_what_a_person_should_know_is_said(cli: Cli, model: tuple[GPT, BPETokenizer]) -> None:
    code, out, err = cli(*GENERATE, f"prompt={'the cat ' * 40}", "top_k=5000")
    assert code == 0
    assert out.startswith("the cat the cat")
    assert re.search(r"a prompt has \d+ tokens; the model sees the last 32", err)
    assert "top_k=5000 is more than the 274 tokens" in err


def test_dtype(cli: Cli, model: tuple[GPT, BPETokenizer]) -> None:
    assert cli(*GENERATE, "prompt=the", "dtype=float32")[1] == cli(*GENERATE, "prompt=the")[1]
    gpt, tokenizer = model
    expected = complete(gpt.bfloat16(), tokenizer, ["the"], 12, seed=0)[0].text
    assert cli(*GENERATE, "prompt=the", "dtype=bfloat16")[1] == f"the{expected}\n"


BAD = [
    (("prompt=a", "prompt_file=lines.txt"), 2, "Give one of them"),
    (("prompt_file=missing.txt",), 2, "missing.txt does not exist"),
    (("prompt_file=latin.txt",), 2, "not UTF-8: byte 3"),
    (("prompt_file=blank.txt",), 2, "no line of text"),
    (("num_samples=0",), 2, "num_samples=0"),
    (("max_new_tokens=0.5",), 2, "max_new_tokens=0.5"),
    (("max_new_tokens=-3",), 2, "max_new_tokens=-3"),
    (("max_new_tokens=0",), 2, "max_new_tokens=0"),
    *(((f"temperature={value}",), 2, f"temperature={value}") for value in (-1, "nan", "inf", "warm")),
    *(((f"top_k={value}",), 2, f"top_k={value}") for value in (0, -1, 1.5)),
    *(((f"top_p={value}",), 2, f"top_p={value}") for value in (0, -0.1, 1.5, "nan")),
    (("repetition_penalty=0",), 2, "repetition_penalty=0"),
    (("stop=[]", "stop=''"), 2, "stop string is empty"),
    (("stop_tokens=5",), 2, "Write it as [50256]"),
    (("stop_tokens=[a]",), 2, "Write it as [50256]"),
    (("model.dropout=2",), 2, "[0, 1)"),
    (("dtype=float63",), 2, "Did you mean 'float32'?"),
    (("output=nowhere/o.jsonl",), 4, "cannot write nowhere/o.jsonl"),
    (("model.name=./missing",), 3, "./missing does not exist"),
    (("model.name=llama",), 3, "model_type=llama"),
    (("model.name=nan",), 3, "NaN"),
    (("model.name=corrupt",), 3, "model.safetensors"),
    (("model.name=pickle",), 3, "pytorch_model.bin"),
    (("model.name=no-tokenizer",), 3, "no-tokenizer holds no tokenizer.json"),
    (("model.n_layer=3",), 2, "unknown key 'model.n_layer'"),
    (("checkpoint=gpt",), 3, "Use model=gpt2-pretrained model.name=gpt"),
]


class Canary:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("canary"),)


@pytest.fixture
def damaged(model: tuple[GPT, BPETokenizer]) -> None:
    """Folders with one thing wrong in each."""
    gpt, tokenizer = model
    Path("lines.txt").write_text("a\nb\n")
    Path("blank.txt").write_text(" \n\n")
    Path("latin.txt").write_bytes("abcé".encode("latin-1"))
    for name in ("llama", "corrupt", "pickle", "no-tokenizer", "nan"):
        gpt.save_pretrained(name, tokenizer if name != "no-tokenizer" else None)
    Path("llama/config.json").write_text(Path("llama/config.json").read_text().replace('"gpt2"', '"llama"'))
    Path("corrupt/model.safetensors").write_bytes(Path("corrupt/model.safetensors").read_bytes()[:999])
    Path("pickle/model.safetensors").unlink()
    torch.save({"wte.weight": Canary()}, "pickle/pytorch_model.bin")
    with torch.no_grad():
        gpt.norm.weight[0] = torch.nan
    gpt.save_pretrained("nan", tokenizer)


@pytest.mark.parametrize(("arguments", "code", "message"), BAD, ids=[" ".join(case[0]) for case in BAD])
@pytest.mark.usefixtures("damaged")
def test_a_mistake_is_one_line(cli: Cli, arguments: tuple[str, ...], code: int, message: str) -> None:
    given = () if any("prompt" in argument for argument in arguments) else ("prompt=the",)
    actual, out, err = cli(*GENERATE[:3], *given, *arguments)
    assert actual == code, err
    assert message in err
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert not Path("canary").exists()


def test_a_hub_that_cannot_be_reached(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    code, _, err = cli("task=generate", "model=gpt2-pretrained", "prompt=a")
    assert code == 4
    for part in ("cannot fetch config.json of gpt2", str(tmp_path), "HF_HUB_OFFLINE", "local folder", "HF_HOME"):
        assert part in err
    assert len(err.splitlines()) == 1


def test_a_run_is_exported_and_read_again(cli: Cli) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    Path("book.txt").write_text(TEXT * 20)
    chars = ("datamodule=chargpt", "datamodule.path=book.txt", "datamodule.block_size=16")
    assert cli("run_dir=run", *chars, *FIT)[0] == 0
    assert cli("task=export", "checkpoint=run", "output=folder")[:2] == (0, "")
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained("folder"), AutoTokenizer.from_pretrained("folder")
    system = LanguageModel.load_from_checkpoint("run")
    assert isinstance(system.tokenizer, CharTokenizer)
    tokens = torch.tensor([tokenizer("the cat\n").input_ids])
    assert tokens.tolist() == [system.tokenizer.encode("the cat\n")]
    torch.testing.assert_close(theirs(tokens).logits, system.gpt(tokens), atol=1e-5, rtol=0)
    text = cli("task=generate", "checkpoint=run", "prompt=the cat", "max_new_tokens=9")[1]
    assert cli("task=generate", PRETRAINED[0], "model.name=folder", "prompt=the cat", "max_new_tokens=9")[1] == text
    code, _, err = cli("task=export", "checkpoint=run", "output=folder")
    assert code == 2
    assert "folder is not an empty folder" in err
    assert cli("task=export", "checkpoint=run")[0] == 2


def test_the_adder_is_exported_without_a_tokenizer(cli: Cli) -> None:
    assert cli("run_dir=run", *FIT)[0] == 0
    assert cli("task=export", "checkpoint=run", "output=folder")[0] == 0
    assert not Path("folder/tokenizer.json").exists()
    assert GPT.from_pretrained("folder").config["vocab_size"] == 10


def terminal(folder: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    """The command line at a terminal of its own; returns the process and our end of the terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, str(ROOT / "main.py"), *arguments]
    process = subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    return process, ours


def read_until(terminal: int, text: str, seconds: float = 60) -> str:
    """What the terminal shows, up to a text."""
    shown, deadline = "", time.monotonic() + seconds
    while text not in shown and time.monotonic() < deadline:
        shown += os.read(terminal, 4096).decode(errors="replace")
    return shown


def test_at_a_terminal_it_asks_answers_and_leaves(cli: Cli, model: tuple[GPT, BPETokenizer], tmp_path: Path) -> None:
    process, keyboard = terminal(tmp_path, *GENERATE, "max_new_tokens=1000000")
    try:
        read_until(keyboard, "> ")
        os.write(keyboard, b"the cat\n")
        shown = read_until(keyboard, "the cat\r\nthe cat")
        for _ in range(3):  # it is written while it is made, for ever
            shown += os.read(keyboard, 4096).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        read_until(keyboard, "> ")
        os.write(keyboard, b"the dog\n")
        read_until(keyboard, "the dog\r\nthe dog")
        process.send_signal(signal.SIGINT)
        read_until(keyboard, "> ")
        os.write(keyboard, b"\x04")
        assert process.wait(20) == 0
    finally:
        process.kill()
        os.close(keyboard)


def test_a_reader_who_has_seen_enough(cli: Cli, model: tuple[GPT, BPETokenizer], tmp_path: Path) -> None:
    command = f"{sys.executable} {ROOT / 'main.py'} {' '.join(GENERATE)} prompt=the max_new_tokens=3000 | head -c 50"
    run = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, check=True)
    assert len(run.stdout) == 50
    assert run.stderr == b""


TEXT_DATA = ("datamodule.path=book.txt", "datamodule.block_size=16", "trainer.accelerator=cpu")


@pytest.fixture
def book(model: tuple[GPT, BPETokenizer]) -> None:
    Path("book.txt").write_text(TEXT * 20)


@pytest.mark.usefixtures("book")
def test_a_pretrained_model_is_tested_and_learns_on(cli: Cli) -> None:
    data = (*TEXT_DATA, "datamodule=text", "datamodule.tokenizer=gpt")
    assert cli("task=test", *PRETRAINED, *data, "run_dir=before")[0] == 0
    before = json.loads(Path("before/summary.json").read_text())["metrics"]
    assert set(before) == {"test/loss", "test/perplexity", "test/bits_per_byte"}
    steps = ("trainer.max_steps=60", "trainer.val_check_interval=60", "optimizer.lr=1e-3")
    code, _, err = cli("experiment=finetune_gpt2", PRETRAINED[1], *TEXT_DATA, *steps, "run_dir=run")
    assert code == 0, err
    after = json.loads(Path("run/summary.json").read_text())["metrics"]
    assert after["test/loss"] < 0.9 * before["test/loss"]
    assert "bits per byte" in err
    system = LanguageModel.load_from_checkpoint("run")
    assert isinstance(system.tokenizer, BPETokenizer)
    assert system.gpt.config["block_size"] == 16
    code, out, _ = cli("task=generate", "checkpoint=run", "prompt=the cat", "max_new_tokens=20")
    assert code == 0
    assert out.startswith("the cat")
    assert cli("task=test", "checkpoint=run", "run_dir=again")[0] == 0
    again = json.loads(Path("again/summary.json").read_text())["metrics"]
    assert again["test/loss"] == pytest.approx(after["test/loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("datamodule=adder",), "gpt has 274 tokens and the data has 10"),
        (("datamodule=text", *TEXT_DATA[:1], "datamodule.vocab_size=260"), "datamodule.tokenizer=gpt"),
        (("datamodule=text", "datamodule.tokenizer=gpt", "datamodule.block_size=50"), "more than the 32 positions"),
    ],
)
@pytest.mark.usefixtures("book")
def test_data_that_a_pretrained_model_cannot_read(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    for task in ("fit", "test"):
        code, _, err = cli(f"task={task}", *PRETRAINED, *arguments)
        assert code == 2
        assert message in err
        assert "Traceback" not in err
        assert not Path("runs").exists()

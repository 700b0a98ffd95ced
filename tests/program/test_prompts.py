"""task=generate, from runs and pretrained models; prompts by argument, file and keyboard."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mingpt_lightning import GPT, BPETokenizer, LanguageModel
from mingpt_lightning.completion import complete
from tests.common import CATS, FOX, PRETRAINED, ROOT, SMALL, TINY, Cli, MakeGPT, summary

GENERATE = ("task=generate", *PRETRAINED, "max_new_tokens=12")


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
    assert out == printed([f"the{sample.text}" for sample in complete(*model, ["the"] * 3, 12, **arguments)])


@pytest.mark.parametrize(
    ("argument", "strings"),
    [("stop=t", ["t"]), ("stop=[a,'e']", ["a", "e"]), (r"stop=\n", ["\n"]), ("stop=it's, [x]", ["it's, [x]"])],
)
def test_stop_strings(cli: Cli, model: tuple[GPT, BPETokenizer], argument: str, strings: list[str]) -> None:
    for number in (1, 4):
        code, out, _ = cli(*GENERATE, "max_new_tokens=60", "prompt=the", argument, f"num_samples={number}")
        assert code == 0
        texts = [f"the{s.text}" for s in complete(*model, ["the"] * number, 60, seed=0, stop=strings)]
        assert out == printed(texts)


def printed(texts: list[str]) -> str:
    """Texts as they are printed: a line of dashes on either side of one that has several lines itself."""
    page = ""
    for n, text in enumerate(texts):
        page += f"{'-' * 40}\n" * (n > 0 and "\n" in texts[n - 1] + text) + f"{text}\n"
    return page


def test_texts_of_several_lines_are_kept_apart(cli: Cli, model: tuple[GPT, BPETokenizer]) -> None:
    texts = ["the cat", "the\ndog", "the mat.\n", "the log", "the"]
    assert printed(texts).split(f"{'-' * 40}\n") == ["the cat\n", "the\ndog\n", "the mat.\n\n", "the log\nthe\n"]
    code, out, _ = cli(*GENERATE, "prompt=the", "num_samples=9", "max_new_tokens=40")
    assert code == 0
    assert out == printed([f"the{sample.text}" for sample in complete(*model, ["the"] * 9, 40, seed=0)])
    assert f"\n{'-' * 40}\nthe" in out


@pytest.mark.usefixtures("model")
def test_a_file_that_holds_something_is_not_overwritten(cli: Cli) -> None:
    Path("o.jsonl").touch()
    assert cli(*GENERATE, "prompt=the", "output=o.jsonl")[0] == 0
    before = Path("o.jsonl").read_text()
    code, out, err = cli(*GENERATE, "prompt=a", "output=o.jsonl")
    assert (code, out) == (2, "")
    assert err == "error: o.jsonl is there already (output). Choose another file, or remove it.\n"
    assert Path("o.jsonl").read_text() == before != ""


def test_a_file_of_prompts_becomes_lines_of_json(cli: Cli, model: tuple[GPT, BPETokenizer]) -> None:
    prompts = [f"the cat {i}" + " sat" * (i % 7) for i in range(20)]
    Path("prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    code, out, _ = cli(*GENERATE, "prompt_file=prompts.txt", "num_samples=2", "output=o.jsonl")
    assert (code, out) == (0, "")
    lines = [json.loads(line) for line in Path("o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["prompt"] for line in lines] == [prompt for prompt in prompts for _ in range(2)]
    alone = complete(*model, [prompts[13]] * 2, 12, seed=0)
    assert [line["completion"] for line in lines[26:28]] == [sample.text for sample in alone]


def test_prompts_keep_their_order_whatever_they_hold(cli: Cli, model: tuple[GPT, BPETokenizer]) -> None:
    prompts = ["the cat", "the\u2028dog\x0bsat\x85on\x1c", "the mat. ", " the log"]
    rows = [{"id": number, "prompt": prompt} for number, prompt in enumerate(prompts)]
    Path("p.txt").write_text("\ufeff" + "\r\n".join(prompts), encoding="utf-8", newline="")
    Path("p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("p.json").write_text(json.dumps(prompts))
    Path("all.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ["the\ncat", ""]))
    for name in ("p.txt", "p.jsonl", "p.json"):
        output = Path(f"{name}.completions.jsonl")
        assert cli(*GENERATE, f"prompt_file={name}", f"output={output}")[0] == 0
        assert [json.loads(line)["prompt"] for line in output.read_text().split("\n")[:-1]] == prompts
    code, out, _ = cli(*GENERATE, "prompt_file=all.jsonl")
    first, empty = complete(*model, ["the\ncat", ""], 12, seed=0)
    assert (code, out) == (0, f"{first.prompt}{first.text}\n{'-' * 40}\n{empty.text}\n")


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "the\n\ncat\n", "line 2 of p.txt has no prompt: it is blank (prompt_file). Remove it; in a .jsonl"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": null}\n', "line 2 of p.jsonl has no prompt: it is null"),
        (
            "p.jsonl",
            '{"prompt": "a"}\n{"text": "b"}\n',
            "line 2 of p.jsonl has no prompt: it is missing; there",
        ),
        ("p.jsonl", '{"prompt": "a"}\nb\n', "not JSON: Expecting value: line 1 column 1 (char 0) (p.jsonl:2)"),
        ("p.csv", "id,text\n1,a\n", "no column of text 'prompt'; its own: 'id', 'text' (prompt_file). Name it prompt."),
        ("p.json", "[]", "p.json holds no prompt (prompt_file)"),
        ("p.txt", "na\udcefve", "p.txt is not UTF-8: byte 2 (prompt_file). Save it as UTF-8."),
    ],
)
def test_a_line_without_a_prompt_is_named(cli: Cli, name: str, content: str, message: str) -> None:
    Path(name).write_text(content, errors="surrogateescape")
    code, out, err = cli(*GENERATE, f"prompt_file={name}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


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
    assert "top_k=5000 exceeds the vocabulary of 274 tokens" in err


def test_dtype(cli: Cli, model: tuple[GPT, BPETokenizer]) -> None:
    assert cli(*GENERATE, "prompt=the", "dtype=float32")[1] == cli(*GENERATE, "prompt=the")[1]
    gpt, tokenizer = model
    expected = complete(gpt.bfloat16(), tokenizer, ["the"], 12, seed=0)[0].text
    assert cli(*GENERATE, "prompt=the", "dtype=bfloat16")[1] == f"the{expected}\n"


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
    main = shlex.join([sys.executable, str(ROOT / "main.py"), *GENERATE, "prompt=the", "max_new_tokens=3000"])
    run = subprocess.run(f"{main} | head -c 50", shell=True, cwd=tmp_path, capture_output=True, check=True)
    assert len(run.stdout) == 50
    assert run.stderr == b""


TEXT_DATA = ("datamodule.path=book.txt", "datamodule.block_size=16", "trainer.accelerator=cpu")


@pytest.mark.usefixtures("model", "book")
def test_a_pretrained_model_is_tested_and_learns_on(cli: Cli) -> None:
    data = (*TEXT_DATA, "datamodule=text", "datamodule.tokenizer=gpt")
    assert cli("task=test", *PRETRAINED, *data, "run_dir=before")[0] == 0
    before = summary("before")["metrics"]
    assert set(before) == {"test/loss", "test/perplexity", "test/bits_per_byte"}
    steps = ("trainer.max_steps=60", "trainer.val_check_interval=60", "optimizer.lr=1e-3")
    code, _, err = cli("experiment=finetune_gpt2", PRETRAINED[1], *TEXT_DATA, *steps, "run_dir=run")
    assert code == 0, err
    after = summary()["metrics"]
    assert after["test/loss"] < 0.9 * before["test/loss"]
    assert "bits per byte" in err
    system = LanguageModel.load_from_checkpoint("run")
    assert isinstance(system.tokenizer, BPETokenizer)
    assert system.gpt.config["block_size"] == 32, "short windows take no positions away"
    assert cli("task=export", "checkpoint=run", "output=folder")[0] == 0
    assert json.loads(Path("folder/config.json").read_text())["n_positions"] == 32
    assert json.loads(Path("folder/tokenizer_config.json").read_text())["model_max_length"] == 32
    code, out, _ = cli("task=generate", "checkpoint=run", "prompt=the cat", "max_new_tokens=20")
    assert code == 0
    assert out.startswith("the cat")
    assert cli("task=test", "checkpoint=run", "run_dir=again")[0] == 0
    again = summary("again")["metrics"]
    assert again["test/loss"] == pytest.approx(after["test/loss"], abs=1e-6)


def test_a_padded_model_is_tested_trained_and_sampled_in_its_tokenizers_words(cli: Cli, make_gpt: MakeGPT) -> None:
    tokenizer = BPETokenizer.train([CATS], 274)
    gpt = make_gpt(304, block_size=32, scale=2.0)
    with torch.no_grad():
        gpt.token_embedding.weight[274:] = gpt.token_embedding.weight[65]  # as likely as a letter
    gpt.save_pretrained("gpt", tokenizer)
    Path("book.txt").write_text(CATS * 20)
    data = (*TEXT_DATA, "datamodule=text", "datamodule.tokenizer=gpt")
    code, _, err = cli("task=test", *PRETRAINED, *data, "run_dir=before")
    assert code == 0, err
    steps = ("trainer.max_steps=5", "trainer.val_check_interval=5")
    code, _, err = cli("experiment=finetune_gpt2", PRETRAINED[1], *TEXT_DATA, *steps, "run_dir=run")
    assert code == 0, err
    assert LanguageModel.load_from_checkpoint("run").gpt.config["vocab_size"] == 304
    assert cli("task=test", "checkpoint=run")[0] == 0
    code, _, err = cli("checkpoint=run", "run_dir=new", *steps)
    assert code == 0, err
    for source in (PRETRAINED, ("checkpoint=run",)):
        code, _, _ = cli("task=generate", *source, "prompt=the", "num_samples=20", "temperature=2", "output=o.jsonl")
        assert code == 0
        texts = [json.loads(line)["completion"] for line in Path("o.jsonl").read_text().splitlines()]
        Path("o.jsonl").unlink()
        assert texts == [s.text for s in complete(*loaded(source), ["the"] * 20, 200, seed=0, temperature=2)]
        tokens = loaded(source)[0].generate([torch.tensor(tokenizer.encode("the"))] * 20, 100, seed=0, temperature=2)
        assert any(int(row.max()) >= 274 for row in tokens), "without a tokenizer, they are chosen"


def loaded(source: tuple[str, ...]) -> tuple[GPT, BPETokenizer]:
    """The model and tokenizer of a command line."""
    if source == PRETRAINED:
        return GPT.from_pretrained("gpt"), BPETokenizer.from_pretrained("gpt")
    system = LanguageModel.load_from_checkpoint("run")
    assert isinstance(system.tokenizer, BPETokenizer)
    return system.gpt, system.tokenizer


@pytest.mark.usefixtures("model", "book")
def test_a_model_grows_for_training_only_and_says_so(cli: Cli) -> None:
    BPETokenizer.train([CATS + FOX], 290).save("other")
    data = (*TEXT_DATA, "datamodule=text", "datamodule.tokenizer=other")
    more = BPETokenizer.from_pretrained("other").vocab_size
    code, _, err = cli("task=test", *PRETRAINED, *data)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert f"gpt has 274 tokens and the data has {more} (datamodule). Give the data the tokenizer of the model" in err
    code, _, err = cli(*PRETRAINED, *data, *TINY[3:], "run_dir=run")
    assert code == 0, err
    assert f"note: gpt has 274 tokens and the data has {more}; the model learns the others" in err
    code, _, err = cli(*PRETRAINED, "datamodule=chargpt", *TEXT_DATA, "run_dir=chars")
    assert (code, "gpt has 274 tokens and the data has" in err) == (2, True)


@pytest.mark.usefixtures("model", "book")
def test_positions_are_cropped_or_added_where_the_command_asks_for_it(cli: Cli) -> None:
    text = (*TEXT_DATA, "datamodule=text", "datamodule.tokenizer=gpt", *TINY[3:], "trainer.limit_val_batches=1")
    models = {"cropped": (*PRETRAINED, "model.block_size=20"), "longer": (*SMALL, "model.block_size=24"), "same": SMALL}
    for run, model in models.items():
        code, _, err = cli(*text, *model, f"run_dir={run}")
        assert code == 0, err
    sizes = [LanguageModel.load_from_checkpoint(run).gpt.block_size for run in models]
    assert sizes == [20, 24, 16]
    code, _, err = cli("run_dir=cropped", "resume=auto", "trainer.max_steps=7")
    assert code == 0, err
    code, _, err = cli("run_dir=longer", "resume=auto", "model.block_size=32")
    assert (code, "block_size: 24 in the checkpoint, 32 now" in err) == (3, True)
    for wrong, message in (
        ((*PRETRAINED, "model.block_size=33"), "block_size=33 is more than the 32 positions of the model (model."),
        ((*PRETRAINED, "model.block_size=9"), "block_size=16 is more than the 9 positions of the model (datamodule."),
        (("model.block_size=9",), "block_size=16 is more than the 9 positions of the model (datamodule."),
        (("model.block_size=0",), "model.block_size=0 is out of range (model.block_size). Use 1 or more"),
        (("model.block_size=many",), "model.block_size=many is not an integer"),
    ):
        code, _, err = cli(*text, *wrong, "run_dir=wrong")
        assert (code, message in err) == (2, True), err

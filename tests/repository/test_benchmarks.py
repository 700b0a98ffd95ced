"""The benchmarks run, in their short forms; what they measure is for people to read."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from benchmarks import charts, hero
from benchmarks.learning_curves import curve
from mingpt_lightning import GPT, LanguageModel
from projects.chargpt.datamodule import CharDataModule
from tests.common import ROOT

Main = Callable[..., str]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Main]:
    """Calls the main() of a benchmark in this process and gives what it prints; its workers are processes."""

    def call(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        importlib.import_module(name).main()
        return capsys.readouterr().out

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of workers: tests may run beside each other
    threads = torch.get_num_threads()
    yield call
    torch.set_num_threads(threads)


def test_generate(main: Main) -> None:
    table = main("benchmarks.generate", "--tiny", "--rounds", "1", "--peers", "nowhere")
    assert "all float32 contestants write the same tokens" in table
    assert len([line for line in table.splitlines() if "transformers bfloat16" in line]) == 3


NAMES = ("memory", "gpu_gpt2.__main__", "data", "startup", "overhead", "scaling.__main__")
LONG = [pytest.param(name, marks=pytest.mark.benchmark) for name in NAMES]


@pytest.mark.parametrize("name", ["roofline", *LONG])
def test_a_short_run(main: Main, name: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    output = main(f"benchmarks.{name}", "--tiny", "--rounds", "1", "--peers", "nowhere", "--json", str(rows))
    entries = [json.loads(line) for line in rows.read_text().splitlines()]
    assert entries
    assert all(len(entry) > 2 for entry in entries)
    assert output.count("|---|") >= 1


@pytest.mark.benchmark
def test_train_gpt2_has_the_losses_of_transformers(main: Main) -> None:
    only = ["--only", "transformers", "transformers tuned"]
    output = main("benchmarks.train_gpt2", "--tiny", "--rounds", "1", "--peers", "nowhere", *only)
    assert "losses of ours, transformers agree in float32" in output
    assert "nanoGPT is missing" in output
    assert len([line for line in output.splitlines() if line.startswith("| ")]) == 4  # head, two peers, ours


@pytest.mark.benchmark
def test_adder_and_shakespeare(main: Main, tmp_path: Path) -> None:
    assert "minGPT is missing" in main("benchmarks.adder", "--tiny", "--peers", "nowhere")
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 300)
    output = main("benchmarks.shakespeare", "--tiny", "--peers", "nowhere", "--text", str(text))
    assert len([line for line in output.splitlines() if "ours, " in line]) == 3


def test_one_command_writes_a_page(main: Main, tmp_path: Path) -> None:
    only = ["--only", "roofline", "shakespeare"]
    with pytest.raises(SystemExit) as ended:
        main("benchmarks.__main__", "--tiny", *only, "--output", str(tmp_path), "--peers", "nowhere")
    assert ended.value.code == 0
    page = (tmp_path / "results.md").read_text()
    assert "## What this machine can do" in page
    assert "Left out: it needs `--text FILE`." in page
    assert {row["benchmark"] for row in json.loads((tmp_path / "results.json").read_text())["rows"]} == {"roofline"}


@pytest.mark.slow
def test_reliability() -> None:
    only = ["kills", "crashes", "cuts", "terms", "damage", "copies", "unsafe", "fuzz", "full", "poison"]
    command = [sys.executable, "-m", "benchmarks.reliability", "--tiny", "--only", *only]  # forks: by itself
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in output.splitlines() if line.startswith("| F")]
    assert len(rows) == len(only)
    for what, cases, as_promised in rows:
        assert int(cases) > 0
        assert as_promised.split(",")[0] == cases, f"{what}: {output}"


@pytest.mark.parametrize("source", sorted((ROOT / "docs/data").glob("*.json")), ids=lambda path: path.stem)
def test_every_file_of_data_says_where_it_is_from_and_can_be_drawn(source: Path, tmp_path: Path) -> None:
    content = json.loads(source.read_text())
    assert all(content[key] for key in ("command", "machine", "date", "rows"))
    assert {row["benchmark"] for row in content["rows"]} == {source.stem}
    target = tmp_path / "chart.png"
    assert charts.draw(source, target) == (source.stem in charts.CHARTS) == target.exists()
    assert (ROOT / "docs/images" / f"{source.stem}.png").exists() == target.exists()


def test_a_chart_of_the_rows_of_a_run(tmp_path: Path) -> None:
    rows = [{"benchmark": "adder", "from": "first step", "ours, s": 1.0 + seed, "minGPT, s": 9.0} for seed in range(3)]
    rows += [{**row, "from": "process start"} for row in rows]
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    assert charts.draw(source, tmp_path / "chart.png")


OLD = "step,train/loss,val/loss\n0,3.5,\n1,3.0,\n1,,3.25\n"  # a row for each kind of value, steps from 0
NEW = "step,tokens,seconds,train/loss,val/loss\n1,8,0.1,3.5,\n2,16,0.2,3.0,3.25\n3,24,0.3,2.5,3.25\n"


@pytest.mark.parametrize("metrics", [OLD, NEW])
def test_curves_of_old_and_new_metrics(metrics: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(metrics)
    assert curve(tmp_path, "train/loss") == (([1, 2], [3.5, 3.0]) if metrics == OLD else ([1, 2, 3], [3.5, 3.0, 2.5]))
    assert curve(tmp_path, "val/loss") == ([2], [3.25])


def test_hero(main: Main, make_trainer: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be\n" * 20)
    data = CharDataModule(str(text), block_size=8)
    gpt = GPT(data.vocab_size, data.block_size, n_layer=1, n_head=1, n_embd=8)
    system: Any = LanguageModel(gpt, tokenizer=data.tokenizer)
    trainer = make_trainer(max_steps=1)
    trainer.fit(system, datamodule=data)
    trainer.save_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    (tmp_path / "metrics.csv").write_text(NEW)
    picture = tmp_path / "hero.png"
    main("benchmarks.hero", str(tmp_path), "--output", str(picture))
    assert picture.stat().st_size > 1000
    lines = hero.sample(system, seed=0)
    assert lines == hero.sample(system, seed=0)
    assert len(lines) <= hero.LINES
    assert max(map(len, lines)) <= hero.COLUMNS

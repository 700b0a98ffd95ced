"""The benchmarks run, in their short forms; what they measure is for people to read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> str:
    result = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return result.stdout


def test_generate() -> None:
    table = run("benchmarks.generate", "--tiny", "--rounds", "1", "--peers", "nowhere")
    assert "all float32 contestants write the same tokens" in table
    assert len([line for line in table.splitlines() if "transformers bfloat16" in line]) == 3


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("data", "startup", "overhead", "scaling")]


@pytest.mark.parametrize("name", ["roofline", "memory", "gpu_gpt2", *SLOW])
def test_a_short_run(name: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    output = run(f"benchmarks.{name}", "--tiny", "--rounds", "1", "--peers", "nowhere", "--json", str(rows))
    entries = [json.loads(line) for line in rows.read_text().splitlines()]
    assert entries
    assert all(len(entry) > 2 for entry in entries)
    assert output.count("|---|") >= 1


def test_train_gpt2_has_the_losses_of_transformers() -> None:
    only = ["--only", "transformers", "transformers tuned"]
    output = run("benchmarks.train_gpt2", "--tiny", "--rounds", "1", "--peers", "nowhere", *only)
    assert "losses of ours, transformers agree in float32" in output
    assert "nanoGPT is missing" in output
    assert len([line for line in output.splitlines() if line.startswith("| ")]) == 4  # head, two peers, ours


def test_adder_and_shakespeare(tmp_path: Path) -> None:
    assert "minGPT is missing" in run("benchmarks.adder", "--tiny", "--peers", "nowhere")
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 300)
    output = run("benchmarks.shakespeare", "--tiny", "--peers", "nowhere", "--text", str(text))
    assert len([line for line in output.splitlines() if "ours, " in line]) == 3


def test_one_command_writes_a_page(tmp_path: Path) -> None:
    run("benchmarks", "--tiny", "--only", "roofline", "shakespeare", "--output", str(tmp_path), "--peers", "nowhere")
    page = (tmp_path / "results.md").read_text()
    assert "## What this machine can do" in page
    assert "Left out: it needs `--text FILE`." in page
    assert {row["benchmark"] for row in json.loads((tmp_path / "results.json").read_text())["rows"]} == {"roofline"}


def test_reliability() -> None:
    only = ["kills", "crashes", "cuts", "terms", "damage", "copies", "unsafe", "fuzz", "full", "poison"]
    output = run("benchmarks.reliability", "--tiny", "--only", *only)
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in output.splitlines() if line.startswith("| F")]
    assert len(rows) == len(only)
    for what, cases, as_promised in rows:
        assert int(cases) > 0
        assert as_promised.split(",")[0] == cases, f"{what}: {output}"

"""The benchmarks run, in their short forms; what they measure is for people to read."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> str:
    result = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return result.stdout


def test_generate() -> None:
    table = run("benchmarks.generate", "--tiny", "--rounds", "1", "--peers", "nowhere")
    assert "all float32 contestants write the same tokens" in table
    assert len([line for line in table.splitlines() if "transformers bfloat16" in line]) == 3

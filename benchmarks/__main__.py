"""Run all benchmarks and collect their tables in one page of markdown and one file of JSON.

    python -m benchmarks --peers FOLDER --text FILE [--output FOLDER] [--only NAME …] [--tiny]

FOLDER holds checkouts of minGPT and nanoGPT, FILE is tiny Shakespeare; a benchmark reports what it lacks. Run nothing
else meanwhile. Writes results.md and results.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.common import ROOT, machine

SUITE = {
    "roofline": "What this machine can do",
    "adder": "Seconds until a model adds",
    "shakespeare": "Loss on tiny Shakespeare",
    "ingredients": "What each ingredient of the best preset gives",
    "train_gpt2": "Training GPT-2 124M",
    "memory": "Peak memory of training GPT-2 124M",
    "generate": "Generating with GPT-2 124M",
    "startup": "Start-up",
    "overhead": "What Lightning and callbacks add to a step",
    "data": "Loading",
    "scaling": "Scaling of time and memory",
    "gpu_gpt2": "GPT-2 124M on a GPU",
}


def command(name: str, options: argparse.Namespace, rows: Path) -> list[str] | None:
    """The command of a benchmark; None if it needs an option that was not given."""
    module = "shakespeare" if name == "ingredients" else name
    run = [sys.executable, "-m", f"benchmarks.{module}", "--peers", str(options.peers.resolve())]
    if name != "generate":
        run += ["--json", str(rows)]
    if module == "shakespeare":
        if options.text is None:
            return None
        run += ["--text", str(options.text.resolve())]
    if name == "ingredients":
        run += ["--ingredients"]
    return run + ["--tiny"] * options.tiny


def write(folder: Path, page: list[str], rows: Path) -> None:
    """Write the results so far."""
    (folder / "results.md").write_text("\n".join(page))
    found = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    (folder / "results.json").write_text(json.dumps({"machine": machine(), "rows": found}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path("peers"))
    parser.add_argument("--text", type=Path)
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"))
    parser.add_argument("--only", nargs="+", default=list(SUITE), choices=SUITE, metavar="NAME")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows = (options.output / "rows.jsonl").resolve()
    rows.unlink(missing_ok=True)
    page, failed = [f"# Benchmarks\n\n{machine()}\n"], []
    for name in options.only:
        print(f"{name} …", file=sys.stderr, flush=True)
        run = command(name, options, rows)
        if run is None:
            page.append(f"## {SUITE[name]}\n\nLeft out: it needs `--text FILE`.\n")
            write(options.output, page, rows)
            continue
        result = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
        shown = " ".join(["python", *run[1:]]).replace(str(options.peers.resolve()), "FOLDER")
        if options.text is not None:
            shown = shown.replace(str(options.text.resolve()), "FILE")
        page.append(f"## {SUITE[name]}\n\n`{shown.replace(f' --json {rows}', '')}`\n\n{result.stdout.strip()}\n")
        if result.returncode:
            failed.append(name)
            page.append(f"It ended with {result.returncode}: {result.stderr.strip().splitlines()[-1:]}\n")
        write(options.output, page, rows)
    rows.unlink(missing_ok=True)
    print(f"wrote {options.output / 'results.md'} and results.json", file=sys.stderr)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()

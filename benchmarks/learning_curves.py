"""Draw the learning curves of several runs: assets/learning_curves.png.

    python -m benchmarks.learning_curves --adder RUN [RUN …] --shakespeare RUN [RUN …]

Left, the exact match on the adder's validation split; right, the loss on tiny Shakespeare, with nanoGPT's final loss
as a line. Both over optimizer steps, read from the metrics.csv of each run.
"""

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt

from mingpt_lightning.cli.summary import new_values


def curve(run: Path, metric: str) -> tuple[list[int], list[float]]:
    """Steps, counted from 1, and values of a metric in the metrics.csv of a run folder, where the metric is new."""
    with (run / "metrics.csv").open(newline="") as stream:
        rows = new_values(list(csv.DictReader(stream)), metric)
    first = 0 if rows and "tokens" in rows[0] else 1  # without that column, a file counts steps from 0
    return [int(row["step"]) + first for row in rows], [float(row[metric]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adder", nargs="+", type=Path, default=[], metavar="RUN")
    parser.add_argument("--shakespeare", nargs="+", type=Path, default=[], metavar="RUN")
    parser.add_argument("--nanogpt", type=float, help="nanoGPT's final loss on the whole validation split")
    parser.add_argument("--output", type=Path, default=Path("assets/learning_curves.png"))
    arguments = parser.parse_args()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for run in arguments.adder:
        steps, values = curve(run, "val/exact_match")
        left.plot(steps, [100 * value for value in values], marker="o", markersize=3, color="#1f6f8b", alpha=0.7)
    left.set(title="python main.py, five seeds", xlabel="optimizer steps", ylabel="sums right, validation (%)")
    left.set_ylim(0, 103)
    for run in arguments.shakespeare:
        right.plot(*curve(run, "train/loss"), color="#1f6f8b", alpha=0.3, label="training batches")
        right.plot(*curve(run, "val/loss"), "o-", color="#1f6f8b", label="whole validation split")
    if arguments.nanogpt is not None:
        right.axhline(arguments.nanogpt, color="#b0413e", linestyle="--", label="nanoGPT after 2,000 steps, validation")
    right.set(title="experiment=shakespeare_char", xlabel="optimizer steps", ylabel="loss (nats per character)")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, dpi=150)


if __name__ == "__main__":
    main()

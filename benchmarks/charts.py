"""Draw the charts of the documentation from the rows that benchmarks write.

    python -m benchmarks.charts                                            docs/images from docs/data, all of them
    python -m benchmarks.charts docs/data/generate.json -o generate.png    one of them

A file of data is what `python -m benchmarks` writes as results.json, or the lines of `--json`; of several benchmarks,
the first that has a chart is drawn. Ours is blue, peers are grey.
"""

import argparse
import io
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.common import ROOT

OURS, PEER, INK, FAINT = "#1f6f8b", "#a9adb2", "#24292f", "#6a737d"
WIDTH, DPI = 5.2, 240  # inches; 1,248 pixels, and type that can be read at 390
ROW = 0.27  # inches for a bar
SEED_NOISE = 0.02  # by how much a loss of the ingredients changes with the seed alone
STYLE = {"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "ytick.color": INK, "xtick.color": FAINT}

Row = dict[str, Any]
LABELS = {
    "nanoGPT tuned": "nanoGPT, tuned",
    "nanoGPT compiled": "nanoGPT, compiled",
    "transformers tuned": "transformers, tuned",
    "nanoGPT float32": "nanoGPT, no cache",
    "minGPT float32": "minGPT, no cache",
}


def read(path: Path) -> tuple[list[Row], str]:
    """The rows of a file, and where they come from: machine and date, as far as the file says."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()], ""
    content = json.loads(text)
    origin = ", ".join(content[key] for key in ("machine", "date") if key in content)
    return content["rows"], origin[:1].upper() + origin[1:]


def frame(panels: list[float], title: str, subtitle: str, footer: str, gap: float = 0.1) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each number of rows, a title that says what is measured, and a footer.

    gap: inches above each panel, for its title.
    """
    notes = textwrap.wrap(footer, 92)
    head, foot = 0.58, 0.16 + 0.14 * len(notes)
    heights = [ROW * n for n in panels]
    height = head + foot + sum(heights) + gap * len(panels)
    figure = plt.figure(figsize=(WIDTH, height), facecolor="white")
    figure.text(0.02, 1 - 0.08 / height, title, weight="bold", size=12, va="top")
    figure.text(0.02, 1 - 0.33 / height, subtitle, size=10, va="top", color=FAINT)
    figure.text(0.02, 0.07 / height, "\n".join(notes), size=7.5, va="bottom", color=FAINT)
    axes, top = [], height - head
    for rows in heights:
        top -= gap + rows
        axes.append(figure.add_axes((0.4, top / height, 0.5, rows / height)))
        axes[-1].spines[:].set_visible(False)
        axes[-1].tick_params(length=0)
    return figure, axes


def bars(axes: Axes, values: dict[str, float], title: str = "") -> None:
    """A horizontal bar with its value for each name, the first on top."""
    names = [LABELS.get(name, name) for name in values]
    colors = [OURS if name.startswith("ours") else PEER for name in values]
    drawn = axes.barh(names, list(values.values()), color=colors, height=0.72)
    axes.bar_label(
        drawn, [f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" for value in values.values()], padding=4
    )
    for label, name in zip(axes.get_yticklabels(), values, strict=True):
        label.set_weight("bold" if name.startswith("ours") else "normal")
    axes.set(ylim=(len(values) - 0.5, -0.5), xticks=[])
    axes.set_title(title, loc="left", size=10, color=INK, x=-0.76)


def adder(rows: list[Row], footer: str) -> Figure:
    subtitle = "Seconds until 99 % of 500 held-out sums are right; lower is better"
    starts = {"first step": "Training alone", "process start": "The whole process, with imports"}
    figure, axes = frame([2] * len(starts), "Learning to add two-digit numbers", subtitle, footer, gap=0.32)
    for panel, (start, title) in zip(axes, starts.items(), strict=True):
        chosen = [row for row in rows if row["from"] == start]
        bars(panel, {name: median(row[f"{name}, s"] for row in chosen) for name in ("ours", "minGPT")}, title)
    return figure


def train_gpt2(rows: list[Row], footer: str) -> Figure:
    speeds = {row["contestant"]: row["tokens/s"] for row in rows}
    footer = f"Tuned: bfloat16 autocast and fused AdamW; compiled: the same with torch.compile. {footer}"
    title, subtitle = "Training GPT-2 (124 M) on a CPU", "Tokens per second; higher is better"
    figure, axes = frame([len(speeds)], title, subtitle, footer)
    bars(axes[0], dict(sorted(speeds.items(), key=lambda item: -item[1])))
    return figure


def generate(rows: list[Row], footer: str) -> Figure:
    cases: dict[tuple[int, int], dict[str, float]] = {}
    for row in rows:
        cases.setdefault((row["rows"], row["prompt"]), {})[row["contestant"]] = row["tokens/s"]
    panels = [len(speeds) for speeds in cases.values()]
    title, subtitle = "Generating with GPT-2 (124 M) on a CPU", "New tokens per second; higher is better"
    figure, axes = frame(panels, title, subtitle, footer, gap=0.32)
    for panel, ((n, prompt), speeds) in zip(axes, cases.items(), strict=True):
        case = f"{n} row{'s' * (n > 1)}, prompt{'s' * (n > 1)} of {prompt} tokens"
        bars(panel, dict(sorted(speeds.items(), key=lambda item: -item[1])), case)
    return figure


def shakespeare(rows: list[Row], footer: str) -> Figure:
    spent: dict[str, list[float]] = {}
    for row in rows:
        if "longer" not in row["contestant"]:
            spent.setdefault(row["contestant"], []).append(row["until nanoGPT's loss, s"])
    subtitle = "Seconds until the final loss of nanoGPT's recipe; lower is better"
    figure, axes = frame([len(spent)], "Training on tiny Shakespeare", subtitle, footer)
    bars(axes[0], {name: median(values) for name, values in sorted(spent.items(), key=lambda item: item[1])})
    return figure


def ingredients(rows: list[Row], footer: str) -> Figure:
    """A dot for each seed; the band around the first row is what another seed changes by itself."""
    losses = {row["preset"]: [float(loss) for loss in row["by seed"].split()] for row in rows}
    base, order = next(iter(losses)), sorted(losses, key=lambda name: mean(losses[name]))
    footer = f"Dots: seeds. Band: what another seed changes by itself. {footer}"
    title = "Ingredients of the preset for tiny Shakespeare"
    subtitle = "Validation loss, nats per character; lower is better"
    figure, (axes,) = frame([1.25 * len(order)], title, subtitle, footer, gap=0.24)
    axes.axvspan(mean(losses[base]) - SEED_NOISE, mean(losses[base]) + SEED_NOISE, color=PEER, alpha=0.3, linewidth=0)
    for place, name in enumerate(order):
        values, color = losses[name], OURS if name == base else INK
        axes.plot(values, [place] * len(values), "o", color=color, alpha=0.8, markersize=6)
        text, spot = ", ".join(f"{value:.3f}" for value in values), (max(values), place)
        axes.annotate(text, spot, (7, 0), textcoords="offset points", va="center", color=color, size=8.5)
    axes.set_yticks(range(len(order)), [textwrap.fill(name, 30) for name in order], size=8.5)
    axes.get_yticklabels()[order.index(base)].set_color(OURS)
    axes.set(ylim=(len(order) - 0.5, -0.5))
    axes.xaxis.tick_top()
    axes.grid(axis="x", alpha=0.3)
    return figure


CHARTS: dict[str, Callable[[list[Row], str], Figure]] = {
    "adder": adder,
    "train_gpt2": train_gpt2,
    "generate": generate,
    "shakespeare": shakespeare,
    "ingredients": ingredients,
}


def draw(source: Path, target: Path) -> bool:
    """Draw the chart of a file of data; False if no benchmark in it has one."""
    rows, footer = read(source)
    name = next((row["benchmark"] for row in rows if row["benchmark"] in CHARTS), None)
    if name is None:
        return False
    with plt.rc_context(STYLE):
        figure = CHARTS[name]([row for row in rows if row["benchmark"] == name], footer)
        save(figure, target)
    return True


def save(figure: Figure, target: Path) -> None:
    """Write a PNG of 64 colours, which has a third of the bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=DPI)
    plt.close(figure)
    Image.open(picture).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(target, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="a file of data; docs/data/*.json without it")
    parser.add_argument("-o", "--output", type=Path, help="the picture; docs/images/NAME.png without it")
    arguments = parser.parse_args()
    for source in [arguments.data] if arguments.data else sorted((ROOT / "docs/data").glob("*.json")):
        target = arguments.output or ROOT / "docs/images" / f"{source.stem}.png"
        print(f"{source.name}: {target if draw(source, target) else 'no chart'}")


if __name__ == "__main__":
    main()

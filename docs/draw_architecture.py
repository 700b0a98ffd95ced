"""Draws docs/images/architecture.png from the code: the modules in the order of their imports, and who imports whom.

    python -m docs.draw_architecture

The order and its groups are those that tests/repository/test_imports.py holds the code to.
"""

import textwrap
from collections import Counter
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from tests.repository.test_imports import ROOMS, ours, path_of

IMAGE = Path(__file__).parent / "images" / "architecture.png"
INK, MUTED, ROOM, EDGE = "#1f2328", "#8a949e", "#eef5f7", "#1f6f8b"


def lines_of(module: str) -> int:
    return len(path_of(module).read_text(encoding="utf-8").splitlines())


def draw(file: Path = IMAGE) -> None:
    """Draw the rooms from the program at the top to what everything may use at the bottom, with their imports."""
    shown = {name: [m.removeprefix("cli.") for m in modules if "__" not in m] for name, modules in ROOMS.items()}
    rows = {name: textwrap.wrap(" ".join(names), 71) for name, names in shown.items()}
    heights = {name: 0.56 + 0.24 * len(lines) for name, lines in rows.items()}
    bottoms = {name: sum(list(heights.values())[:number]) for number, name in enumerate(ROOMS)}
    size = (7.9, sum(heights.values()) + 0.1)
    figure = Figure(figsize=size, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, size[0]), ylim=(-0.1, size[1] - 0.1))
    axes.axis("off")
    for name, lines in rows.items():
        bottom, height = bottoms[name], heights[name] - 0.2
        style = {"boxstyle": "round,pad=0.03", "facecolor": ROOM, "edgecolor": EDGE}
        axes.add_patch(FancyBboxPatch((0.15, bottom), 6.9, height, **style))
        top = bottom + height - 0.12
        axes.text(0.25, top, name, fontsize=12.5, fontweight="bold", color=INK, va="center")
        count = f"{sum(map(lines_of, ROOMS[name])):,} lines"
        axes.text(6.95, top, count, fontsize=10, color=MUTED, va="center", ha="right")
        for number, line in enumerate(lines):
            axes.text(0.25, top - 0.27 - 0.24 * number, line.replace(" ", "   "), fontsize=11.5, color=INK, va="center")
    names = list(ROOMS)
    room_of = {module: name for name, modules in ROOMS.items() for module in modules}
    pairs = ((room_of[m], room_of[other]) for m in room_of for other in ours(path_of(m)))
    for (importer, imported), count in sorted(Counter(pairs).items()):
        rooms_down = names.index(importer) - names.index(imported)
        if rooms_down > 0:
            style = {"arrowstyle": "-|>", "mutation_scale": 10, "linewidth": 0.8 + 0.08 * count, "alpha": 0.85}
            curve = f"arc3,rad={-0.5 if rooms_down == 1 else -0.22}"
            start = (7.1, bottoms[importer] + 0.2)
            end = (7.1, bottoms[imported] + heights[imported] - 0.4)
            color = EDGE if rooms_down == 1 else MUTED
            axes.add_patch(FancyArrowPatch(start, end, connectionstyle=curve, color=color, **style))
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    draw()

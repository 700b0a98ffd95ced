"""Draw the picture at the top of README: the learning curves of a run beside a text that its model wrote.

    python main.py experiment=shakespeare_char_fast datamodule.path=tinyshakespeare.txt datamodule.url=null \\
        trainer.val_check_interval=20 run_dir=RUN
    python -m benchmarks.hero RUN

It trains nothing: the curves come from the run's metrics.csv, the text from its best checkpoint, sampled at temperature
0.8 with seed 0.
"""

import argparse
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt

from benchmarks.charts import FAINT, INK, OURS, PEER, STYLE, save
from benchmarks.learning_curves import curve
from mingpt_lightning import LanguageModel

LINES, COLUMNS = 16, 46


def sample(system: LanguageModel, seed: int) -> list[str]:
    """The first lines of a text that a model writes from nothing, the long ones wrapped."""
    text = system.complete("", LINES * COLUMNS, temperature=0.8, seed=seed)[0]
    lines = [
        part for line in text.splitlines() for part in textwrap.wrap(line, COLUMNS, subsequent_indent="  ") or [""]
    ]
    return lines[:LINES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--seed", type=int, default=0, help="of the text")
    parser.add_argument("-o", "--output", type=Path, default=Path("assets/hero.png"))
    arguments = parser.parse_args()
    system = LanguageModel.load_from_checkpoint(arguments.run / "checkpoints" / "best.ckpt")
    train, val = (curve(arguments.run, f"{split}/loss") for split in ("train", "val"))
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(8, 3.3), width_ratios=(0.9, 1), layout="constrained", facecolor="white"
        )
        left.plot(*train, color=PEER, label="training batches")
        left.plot(*val, "o-", color=OURS, markersize=4, label=f"validation, {val[1][-1]:.3f} at the end")
        left.set_title("Loss, nats per character", loc="left", size=11)
        left.set_xlabel(f"optimizer steps of a GPT with {system.gpt.n_parameters:,} parameters", size=9, color=FAINT)
        left.legend(frameon=False)
        left.grid(alpha=0.25)
        left.spines[["top", "right"]].set_visible(False)
        right.set_title("What it writes", loc="left", size=11)
        text = "\n".join(sample(system, arguments.seed))
        right.text(0, 0.98, text, family="monospace", size=9.5, va="top", color=INK, linespacing=1.35, parse_math=False)
        right.set_axis_off()
        save(figure, arguments.output)


if __name__ == "__main__":
    main()

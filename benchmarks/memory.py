"""Peak memory of training steps of GPT-2's shape, against the batch and the length; beside the peers.

    python -m benchmarks.memory --peers FOLDER

Each contestant has a fresh process that takes three steps (see `benchmarks.train_gpt2`); its peak is that of resident
memory, imports and weights included. The lower bound with float32 weights is 2 GB: weights, gradients and AdamW's two
moments.
"""

import argparse

from benchmarks.common import Table, machine, parser
from benchmarks.peers import available
from benchmarks.train_gpt2 import start

CASES = [(1, 1024), (4, 1024)]  # sequences, tokens
CONTESTANTS = ["ours", "nanoGPT tuned", "transformers", "transformers tuned"]


def main() -> None:
    options = parser(__doc__).parse_args()
    print(machine())
    names = available(options.peers, CONTESTANTS[::3] if options.tiny else CONTESTANTS)
    table = Table(options, "memory", "batch", "tokens", "contestant", "peak GB", "ours is of it")
    for batch, length in [(2, 64)] if options.tiny else CASES:
        ours = 0
        for name in names:
            sizes = argparse.Namespace(**vars(options), batch=batch, length=length, steps=2)
            worker = start(name, sizes, *["--tiny"] * options.tiny)
            rss = worker()["rss"]
            worker.stop()
            ours = ours or rss
            table.row(batch, length, name, rss / 1e9, f"{ours / rss:.2f}")


if __name__ == "__main__":
    main()

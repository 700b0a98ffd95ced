"""Scaling of time and memory with context, depth, data, digits, new tokens and batch; each law is fitted and tested.

    python -m benchmarks.scaling --peers FOLDER             FOLDER holds a checkout named minGPT, a contrast
    python -m benchmarks.scaling --only context depth       some of the laws
    python -m benchmarks.scaling --tiny                     small sizes: does the script run?

context: training steps of 4,096 tokens in sequences of length T. Time per token is a + b T; at 1,024 tokens what grows
must be at most 0.4 of what doesn't. The model is a sixth of GPT-2, two of its layers and a sixth of its vocabulary, so
that attention has the share of the work that it has there. When T doubles, memory may double, but not more; at equal
numbers of tokens and of sequences. minGPT stores T times T numbers for each head.
depth: time and memory of a step are straight lines over the number of layers: R² above 0.99.
data: windows of 1,024 tokens from files of 1 MB to 10 GB. The time from Python's start to the first batch, the time per
batch, and memory are at most 10 % apart. The files are sparse and mapped, and the same windows are drawn in every turn,
so that their pages are in memory and the disk is not measured; read-ahead is off, which would fill memory with pages
that are not needed. Memory is what the process has allocated in the end, Python and PyTorch included; pages of the
file, which the kernel reclaims when needed, do not count.
digits: a batch of the adder takes at most in proportion to the digits; its datamodule is made at once, however many
problems there are.
length: a token costs at 1,000 new ones at most 1.25 of what it costs at 100. The width is 512: every token reads all
weights, and beside those of a narrower model keys and values would be more than they are in GPT-2.
batch: 32 rows are generated at ten times the tokens a second of one; a larger batch never trains fewer tokens a second.

Every point has a process of its own, in which it has a turn in every round; the shortest of a point counts. All have
one thread, because two would wait for each other wherever something else runs, and for a small model the most. Training
is in bfloat16 where the library chooses it, generation in float32.
"""

import argparse
import json
import time

from benchmarks.common import Table, machine, parser
from benchmarks.peers import FILES, find
from benchmarks.scaling.laws import LAWS
from benchmarks.scaling.workers import WORK, work


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--only", nargs="+", choices=LAWS, default=list(LAWS), help="some of the laws")
    arguments.add_argument("--worker", choices=WORK, help=argparse.SUPPRESS)
    arguments.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.worker:
        work(options.worker, options.settings)
        return
    print(machine())
    start = time.perf_counter()
    there = "context" in options.only and find(options.peers, "minGPT", FILES["minGPT"])
    options.mingpt = options.peers.resolve() if there else None
    table = Table(options, "scaling", "law", "measured", "bound", "held")
    for name in options.only:
        LAWS[name](options, table)
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()

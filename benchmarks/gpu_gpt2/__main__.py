"""Exact GPT-2 124M on one CUDA GPU, in sequences of 1,024 tokens: training beside nanoGPT, and generation.

    python -m benchmarks.gpu_gpt2 --peers FOLDER            FOLDER holds a checkout named nanoGPT
    python -m benchmarks.gpu_gpt2 --only train              one part: parity, train or decode
    python -m benchmarks.gpu_gpt2 --tiny                    a small model, also on a CPU: does the script run?

Parity comes first: from the same weights and batches, five steps of AdamW in bfloat16, none compiled, must give
nanoGPT's losses; with and without the columns that fill the vocabulary up to 50,304, which are cut off before the loss.

Training: all contestants have the same weights, batches, autocast and fused AdamW, and no gradient clipping. Ours is
the loss as a function of GPT, inputs and targets, compiled as a whole; nanoGPT is its model, compiled as it ships, with
its vocabulary of 50,304. Each has its own process and a turn in every round, after which it frees its memory. The first
step, which compiles, is reported separately. The benchmark fails if ours waits for the device in a timed step. Memory
is the peak of what PyTorch allocated. MFU counts 855.2 MFLOP for a token and 989.4 TFLOP/s for the GPU. The profiler
names the attention kernels of a step; on Hopper they have to be cuDNN's, from PyTorch 2.11 on.

Generation: greedy. A step with a cache of fixed shape is captured in a CUDA graph and replayed, as it is and compiled;
beside it `gpt.generate`, and nanoGPT's, which has no cache. Beforehand the graph must write the same tokens as
`gpt.generate` in float32; in bfloat16, where near ties may fall either way, the share of equal ones is printed.
"""

import argparse
import sys

import torch

from benchmarks.common import machine, parser, serve
from benchmarks.gpu_gpt2.contestants import turns
from benchmarks.gpu_gpt2.device import CUDA
from benchmarks.gpu_gpt2.generation import decode
from benchmarks.gpu_gpt2.plan import TINY, Plan
from benchmarks.gpu_gpt2.training import parity, train
from benchmarks.peers import FILES, find


def main() -> None:
    arguments = parser(__doc__, rounds=3)
    arguments.add_argument("--compile", action="store_true", help="with --tiny: compile, which is slow on a CPU")
    arguments.add_argument("--only", choices=["parity", "train", "decode"], help="one of the three parts")
    arguments.add_argument("--worker", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if not CUDA and not options.tiny:
        print("There is no CUDA GPU here: nothing was measured.")
        return
    options.compile |= not options.tiny
    if not CUDA:
        torch.set_num_threads(1)
    plan = TINY if options.tiny else Plan()
    if options.worker:
        reports = turns(options.worker, plan, options.peers, options.rounds, options.compile)
        serve(lambda: next(reports))
        return
    print(machine(), *([torch.cuda.get_device_name()] if CUDA else []), sep=", ")
    peers = options.peers if find(options.peers, "nanoGPT", FILES["nanoGPT"]) else None
    failed: list[str] = []
    for part in (parity, train, decode):
        if options.only in (None, part.__name__):
            failed += part(options, plan, peers)
        if failed and part is parity:
            break
    if failed:
        sys.exit(f"\ndidn't hold: {'; '.join(failed)}")


if __name__ == "__main__":
    main()

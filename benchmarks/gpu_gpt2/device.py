"""CUDA, with stand-ins for a CPU: waiting, timing, feeding, memory, graphs and the names of kernels."""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from itertools import chain, cycle, repeat

import torch
from torch import Tensor

from benchmarks.common import peak_rss
from mingpt_lightning.datamodule import Batch, BatchLoader

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
HOPPER = CUDA and torch.cuda.get_device_capability() == (9, 0)


def wait() -> None:
    """Wait until the device is idle."""
    if CUDA:
        torch.cuda.synchronize()


def timed(function: Callable[[], object]) -> float:
    """How long a call takes, including its work on the device."""
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


@contextlib.contextmanager
def no_waiting(strict: bool) -> Iterator[None]:
    """Within this context, making the host wait for the device is an error, if `strict`."""
    if CUDA and strict:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if CUDA:
            torch.cuda.set_sync_debug_mode("default")


def feed(loader: BatchLoader, T: int) -> Iterator[Batch]:
    """Endless batches on the device. With CUDA, each is copied while the step before computes.

    Two places on the device take turns. The copy comes from pinned memory, on a stream of its own, which waits for
    the step that used the place last; the host waits for nothing.
    """
    batches = chain.from_iterable(repeat(loader))
    if not CUDA:
        for inputs, targets in batches:
            yield inputs.contiguous(), targets.contiguous()
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    shape = loader.batch_size, T
    places = cycle([[torch.empty(shape, dtype=torch.long, device=DEVICE) for _ in range(2)] for _ in range(2)])

    def copy_next() -> list[Tensor]:
        place = next(places)
        side.wait_stream(main)
        with torch.cuda.stream(side):
            for there, here in zip(place, next(batches), strict=True):
                there.copy_(here.contiguous().pin_memory(), non_blocking=True)
        return place

    ahead = copy_next()
    while True:
        main.wait_stream(side)
        ready, ahead = ahead, copy_next()
        yield ready[0], ready[1]


def peak_memory() -> int:
    """Peak memory since the last call, in bytes; on a CPU, since the process began."""
    if not CUDA:
        return peak_rss()
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


def release() -> None:
    """Free cached memory of the device."""
    wait()
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """`step` as a function that can be repeated; with CUDA, the replay of a CUDA graph."""
    if not CUDA:
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles, chooses kernels and allocates, none of which a capture may do
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def attention_kernels(step: Callable[[], object]) -> list[str]:
    """The names of the attention kernels that a step runs on the GPU."""
    if not CUDA:
        return []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        wait()
    names = {event.key for event in profile.key_averages()}
    words = "sdpa", "flash", "fmha", "attention"
    # Triton kernels of the compiler name the operations that they fuse
    return sorted(n for n in names if not n.startswith("triton_") and any(word in n.lower() for word in words))

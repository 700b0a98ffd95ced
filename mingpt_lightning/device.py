"""Device-dependent defaults: precision, threads, compilation, memory allocation."""

import ctypes
import os
import re
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from mingpt_lightning.probe import Rates, fastest, rates

NARROW = 256
"""Below this width, bfloat16 and packed weights gain nothing."""

SINGLE = 128
"""Below this width, a model runs on one thread."""

THREADS = torch.get_num_threads()


def fast_dtype(device: torch.device, width: int) -> torch.dtype:
    """bfloat16 where the device is faster in it at products of this width, else float32."""
    if device.type == "cuda":
        fast = width >= NARROW and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        figures = dtype_rates(device, width)
        fast = bool(figures) and fastest(figures) == "bfloat16"
    return torch.bfloat16 if fast else torch.float32


def dtype_rates(device: torch.device, width: int) -> Rates:
    """GFLOP/s by dtype, of a product as in an MLP of this width; nothing where bfloat16 can't be faster."""
    if device.type != "cpu" or width < NARROW or not multiplies_bfloat16():
        return {}

    def calls() -> dict[str, Callable[[], object]]:
        x, weight = factors(512, width)
        weights = {"float32": weight, "bfloat16": weight.bfloat16()}
        return {name: partial(lambda w: F.linear(x.to(w.dtype), w), w) for name, w in weights.items()}

    return rates(f"dtypes at width {width}, {torch.get_num_threads()} threads", gflop(512, width), calls)


def multiplies_bfloat16() -> bool:
    """Whether torch has matrix products in bfloat16 for this CPU, fast or not; otherwise they are very slow."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


PEAKS = {
    **{"H100": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H200": 989e12, "H200 NVL": 836e12, "B200": 2250e12},
    **{"A100": 312e12, "A10": 125e12, "L4": 121e12, "L40": 181e12, "L40S": 362e12, "RTX 4090": 165.2e12},
}
"""FLOP/s of GPUs in dense 16-bit matrix products, by words of their names. Lightning's table has figures with sparsity
among them, and none under the name of an H200. Sources: NVIDIA's data sheets as nanochat and torchtitan cite them."""


def peak_flops(device: torch.device, precision: str, width: int) -> float | None:
    """The most FLOP/s that a device can do in a Trainer's precision; None where nobody knows.

    Of a GPU from PEAKS, for 16 bits only. Of a CPU the product rate that was measured to choose threads and
    precision, so None where there was no choice.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = max((part for part in PEAKS if re.search(rf"\b{part}\b", name)), key=len, default=None)
        if known is None or "Laptop" in name or not precision.startswith(("bf16", "16")):
            return None
        return PEAKS[known]
    if precision.startswith("bf16"):
        return 1e9 * dtype_rates(device, width).get("bfloat16", 0.0) or None
    figures = thread_rates(device, width).values() if precision.startswith("32") else ()
    return 1e9 * max(figures, default=0.0) or None


def set_threads(device: torch.device, n_embd: int) -> None:
    """Set how many CPU threads a model uses; OMP_NUM_THREADS has precedence.

    The operations of a narrow model take microseconds: a second thread gains a quarter on an idle machine, and loses
    more than half on a busy one, because the threads wait for each other.
    """
    figures = thread_rates(device, n_embd)
    threads = 1 if n_embd < SINGLE and "OMP_NUM_THREADS" not in os.environ else THREADS
    torch.set_num_threads(int(fastest(figures, margin=2)) if figures else threads)


def thread_rates(device: torch.device, width: int) -> Rates:
    """GFLOP/s by number of threads, of a product as in an MLP of this width; nothing where there is no choice.

    A container may see more cores than it may use, and with a thread for each it is many times as slow as with a few.
    Smaller differences come and go with what else is running, and aren't worth other last bits in every result.
    """
    if device.type != "cpu" or width < SINGLE or THREADS == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}

    def calls() -> dict[str, Callable[[], object]]:
        x, weight = factors(128, width)

        def product(threads: int) -> None:
            torch.set_num_threads(threads)
            F.linear(x, weight)

        counts = [THREADS, *(2**power for power in reversed(range(16)) if 2**power < THREADS)]
        return {str(threads): partial(product, threads) for threads in counts}

    before = torch.get_num_threads()
    try:
        return rates(f"threads at width {width}, up to {THREADS}", gflop(128, width), calls)
    finally:
        torch.set_num_threads(before)


def factors(rows: int, width: int) -> tuple[Tensor, Tensor]:
    """The factors of a product of some rows as in an MLP of this width, or of a part of one that is wide."""
    return torch.ones(rows, width), torch.ones(min(4 * width, 2**21 // width), width)


def gflop(rows: int, width: int) -> float:
    """The work of that product: 0.3 GFLOP for 128 rows of width 512, and not much more of any other."""
    return 2e-9 * rows * width * min(4 * width, 2**21 // width)


def compile_pays(device: torch.device, n_embd: int, steps: int) -> bool:
    """Whether torch.compile saves more time than compiling takes: on a GPU, for wide models and long runs.

    On a CPU, matrix products take most of a step, and they stay the same.
    """
    return device.type == "cuda" and n_embd >= NARROW and steps >= 1000


def keep_memory() -> None:
    """Have glibc keep freed memory for the next tensors instead of returning it to the operating system.

    By default it returns large blocks at once and requests them again at the next step, and the kernel zeroes them each
    time. Settings in the environment (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_, GLIBC_TUNABLES) are respected,
    and other C libraries left alone.
    """
    set_by_user = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys()
    if sys.platform == "linux" and not set_by_user and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, LARGEST = -1, -3, 2**31 - 1
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST)

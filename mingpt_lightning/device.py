"""Device-dependent defaults: precision, threads, compilation, memory allocation."""

import ctypes
import os
import sys

import torch

NARROW = 256
"""Below this width, bfloat16 and packed weights gain nothing."""

THREADS = torch.get_num_threads()


def fast_dtype(device: torch.device, width: int) -> torch.dtype:
    """bfloat16 where the device has instructions for it and the model is wide enough to gain, else float32."""
    match device.type:
        case "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        case "cpu":
            fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        case _:
            fast = False
    return torch.bfloat16 if fast and width >= NARROW else torch.float32


def set_threads(n_embd: int) -> None:
    """Use one CPU thread for a narrow model, unless OMP_NUM_THREADS is set; otherwise torch's default.

    The operations of a narrow model take microseconds: a second thread gains a quarter on an idle machine, and loses
    more than half on a busy one, because the threads wait for each other.
    """
    torch.set_num_threads(1 if n_embd < 128 and "OMP_NUM_THREADS" not in os.environ else THREADS)


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

"""What suits the machine."""

import sys

import pytest
import torch

from mingpt_lightning.device import compile_pays
from tests.common import python

FAULTS = """
import resource, sys, torch
from mingpt_lightning.device import keep_memory
if "keep" in sys.argv:
    keep_memory()
for _ in range(8):
    torch.ones(2**24)  # until the heap has found its size
faults = []
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(faults)[2])  # a busy system may take pages back at any time
"""


def faults(*arguments: str, **environment: str) -> int:
    """How often the system had to hand out memory for a tensor that comes and goes, in the median."""
    return int(python(FAULTS, *arguments, env={"OMP_NUM_THREADS": "1"} | environment).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_that_was_used_is_used_again() -> None:
    returned, kept = faults(), faults("keep")
    if returned < 1000:
        pytest.skip("this C library keeps large pieces by itself")
    assert kept < returned / 10
    assert faults("keep", MALLOC_MMAP_THRESHOLD_="65536") > returned / 2  # the user knows better


def test_compiling_is_for_long_runs_of_wide_models_on_a_gpu() -> None:
    assert compile_pays(torch.device("cuda"), 768, 5000)
    assert not compile_pays(torch.device("cuda"), 768, 10)
    assert not compile_pays(torch.device("cuda"), 64, 5000)
    assert not compile_pays(torch.device("cpu"), 768, 5000)

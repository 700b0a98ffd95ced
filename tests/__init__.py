"""The same surroundings for all tests, and the processes that they start, however pytest was started.

This is here, and not in conftest.py, because Lightning and torch read some of it when they are imported.
"""

import os
import signal

import pytest

OF_THE_USER = (
    *("SLURM_", "OMP_", "GOMP_", "MKL_", "KMP_", "MALLOC_", "GLIBC_"),  # schedulers, threads, memory
    *("PL_", "HYDRA_", "HF_", "TRANSFORMERS_", "TORCH", "TIKTOKEN_", "MASTER_", "LOCAL_", "GROUP_"),  # libraries
    *("RANK", "WORLD_SIZE", "NODE_RANK", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_", "PYTHONWARNINGS"),
)
"""How names of environment variables begin that change what a training does or what it prints."""

for name in [name for name in os.environ if name.startswith(OF_THE_USER)]:
    del os.environ[name]
os.environ["OMP_NUM_THREADS"] = "1"  # quickest for models of this size

# The shell lets what a script runs in the background ignore SIGINT, `nohup` lets it ignore SIGHUP; children inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, signal.SIG_DFL)

pytest.register_assert_rewrite("tests.common", "tests.gpt2_files")  # they assert for the tests

"""The scaling benchmark: `python -m benchmarks.scaling`; see `benchmarks.scaling.__main__`."""

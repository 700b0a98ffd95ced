"""The reliability benchmark: `python -m benchmarks.reliability`; see `benchmarks.reliability.__main__`."""

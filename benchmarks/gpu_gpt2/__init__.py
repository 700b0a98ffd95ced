"""GPT-2 on a GPU: `python -m benchmarks.gpu_gpt2`; see `benchmarks.gpu_gpt2.__main__`."""

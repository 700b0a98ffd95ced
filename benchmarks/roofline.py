"""Upper bounds of this machine: rates of matrix products and memory reads, to compare all other figures with.

    python -m benchmarks.roofline

Matrix products of the shapes of GPT-2 (4,096 tokens through its MLP, and onto its vocabulary) and of a small model, in
float32 and bfloat16, with one thread and all; a matrix times a vector, the bulk of generating a token; reading 250 MB
and 2 GB.
"""

import torch

from benchmarks.common import Table, machine, parser, seconds
from mingpt_lightning.device import multiplies_bfloat16

DTYPES = (torch.float32, torch.bfloat16)[: 1 + multiplies_bfloat16()]  # products without instructions take forever
PRODUCTS = [(2048, 2048, 2048), (4096, 768, 3072), (2048, 768, 50304), (384, 48, 192)]


def best(function: object, tries: int) -> float:
    """The shortest of some calls, the first not counted."""
    seconds(function)  # type: ignore[arg-type]
    return min(seconds(function) for _ in range(tries))  # type: ignore[arg-type]


def product_rate(shape: tuple[int, int, int], dtype: torch.dtype, tries: int = 5) -> float:
    """FLOP a second of a (rows, inner) times (inner, columns) product."""
    rows, inner, columns = shape
    left, right = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
    repeat = max(1, 2**28 // (rows * inner * columns))
    return repeat * 2 * rows * inner * columns / best(lambda: [left @ right.T for _ in range(repeat)], tries)


def read_rate(size: int, tries: int = 5) -> float:
    """Bytes a second of reading a tensor of `size` bytes."""
    tensor = torch.ones(size // 4, dtype=torch.int32)
    return size / best(lambda: tensor.sum(dtype=torch.int32), tries)


def main() -> None:
    options = parser(__doc__).parse_args()
    scale = 16 if options.tiny else 1
    print(machine())
    table = Table(options, "roofline", "what", "threads", "float32", "bfloat16", "unit")
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        for rows, inner, columns in PRODUCTS:
            shape = (rows // scale, inner, columns // scale)
            rates = [product_rate(shape, dtype) / 1e9 for dtype in DTYPES] + [""] * (2 - len(DTYPES))
            table.row(f"product {shape[0]}x{shape[1]}x{shape[2]}", threads, *rates, "GFLOP/s")
        sizes = [dtype.itemsize / 2e9 * product_rate((1, 768, 50304 // scale), dtype) for dtype in DTYPES]
        table.row("vector x matrix 768x50304", threads, *sizes, *[""] * (2 - len(DTYPES)), "GB/s")
        for size in (250_000_000, 2_000_000_000):
            table.row(f"read of {size // 1_000_000} MB", threads, read_rate(size // scale) / 1e9, "", "GB/s")


if __name__ == "__main__":
    main()

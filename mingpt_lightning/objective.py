"""Which way a metric is better, and from where on there is nothing left to gain. Needs no torch: configs ask for it."""

from typing import Literal

Direction = Literal["min", "max"]

DIRECTIONS: dict[str, Direction] = {
    "loss": "min",
    "perplexity": "min",
    "exact_match": "max",
    "bits_per_character": "min",
    "bits_per_byte": "min",
    "bits_per_dimension": "min",
}
"""The metrics of this library; a system that logs one of its own adds it here."""

SOLVED = {"loss": 1e-3, "perplexity": 1.001, "exact_match": 0.999999}
"""Beyond these a metric is as good as it gets, and training may stop."""


def direction(metric: str) -> Direction | None:
    """Whether less ("min") or more ("max") of a metric such as val/loss is better; None for one that isn't known."""
    return DIRECTIONS.get(metric.rpartition("/")[2])


def solved(metric: str) -> float | None:
    """The value of a metric beyond which there is nothing left to learn; None where it isn't known."""
    return SOLVED.get(metric.rpartition("/")[2])

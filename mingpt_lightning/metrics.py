"""Metrics of validation and test: loss, perplexity, exact match, bits per character or byte.

Sums over batches first, divisions last, so that each token counts the same whatever batch it is in.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mingpt_lightning.datamodule import IGNORE, Batch
from mingpt_lightning.gpt import GPT
from mingpt_lightning.loss import chunk_rows
from mingpt_lightning.tokenizer import Tokenizer


def metric_sums(gpt: GPT, batch: Batch, byte_lengths: Tensor | None = None, vocab_size: int | None = None) -> Tensor:
    """Sums over a batch: loss in nats, tokens, sequences with every target right, sequences, units of text.

    byte_lengths: of each token, (V,), where the unit is a byte; None where each token is one unit. vocab_size: of the
    tokenizer; the ids beyond it, which a padded model has, are no answers. Never holds the logits of more than a chunk
    of the sequences.
    """
    inputs, targets = batch
    rows = max(1, chunk_rows(inputs.device, gpt.config["vocab_size"]) // inputs.shape[1])
    chunks = zip(gpt.hidden(inputs).split(rows), targets.split(rows), strict=True)
    sums = [chunk_sums(gpt.logits(hidden), wanted, byte_lengths, vocab_size) for hidden, wanted in chunks]
    return torch.stack(sums).sum(0)


def chunk_sums(logits: Tensor, targets: Tensor, byte_lengths: Tensor | None, vocab_size: int | None) -> Tensor:
    """The sums of `metric_sums` for some of the sequences."""
    total = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
    counted = targets != IGNORE
    # Greedy decoding goes wrong at the first target that is not the likeliest token, and only there.
    right = ((logits[..., :vocab_size].argmax(dim=-1) == targets) | ~counted).all(dim=1)
    units = counted.sum()
    if byte_lengths is not None:
        units = (byte_lengths[targets.clamp(min=0)] * counted).sum()
    return torch.stack([total, counted.sum(), right.sum(), targets.new_tensor(len(targets)), units])


def metrics_of(sums: Tensor, tokenizer: Tokenizer | None) -> dict[str, float]:
    """The metrics from sums of `metric_sums`, added over batches.

    The exact match needs a tokenizer with an `answer_length`, bits per unit one with a `unit`.
    """
    total, tokens, right, sequences, units = sums.tolist()
    loss = total / max(tokens, 1)
    values = {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}
    if tokenizer is not None and tokenizer.answer_length is not None:
        values["exact_match"] = right / max(sequences, 1)
    if tokenizer is not None and tokenizer.unit is not None:
        values[f"bits_per_{tokenizer.unit}"] = total / math.log(2) / max(units, 1)
    return values

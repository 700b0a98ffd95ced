"""Memory for time: activations inside a block are computed again in the backward pass instead of being kept."""

from functools import partial

from torch.utils.checkpoint import checkpoint

from mingpt_lightning.gpt import GPT


def recompute_blocks(gpt: GPT) -> None:
    """Keep only the input of each block for the backward pass, in place; the numbers and the names of weights stay.

    Training then holds the activations of one block instead of all, for a forward pass more: a third more work.
    Dropout draws the same masks again. Nothing changes without gradients.
    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", section 3.
    """
    keep_activations(gpt)
    for block in gpt.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def keep_activations(gpt: GPT) -> None:
    """Undo `recompute_blocks`."""
    for block in gpt.blocks:
        if getattr(block.forward, "func", None) is checkpoint:
            del block.forward

"""Generation of tokens: greedy, temperature, top-k, top-p and repetition penalty, with a key/value cache.

Each row of a batch gets the tokens that it would get alone: prompts may have different lengths, and with a seed, the
random numbers of a row are a function of the seed, its prompt, and how many earlier rows have the same prompt.

The context. A GPT sees `block_size` tokens. A longer prompt is cropped to its last `block_size` tokens. When the
context is full, its older half is dropped and the younger half is prefilled again as a new beginning: the work per
token is bounded however long the text gets, and what a row sees is a function of its own tokens alone.

This module knows of tokens only; `completion.py` makes text of them.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mingpt_lightning.cache import KVCache
from mingpt_lightning.errors import UserError, require_positive
from mingpt_lightning.gpt import GPT
from mingpt_lightning.structure import check_methods, takes_cache


class Sampling(NamedTuple):
    """How the next token is sampled; the steps are applied in this order.

    repetition_penalty: the logits of tokens that the row contains, prompt included, are divided by it where positive
    and multiplied elsewhere (Keskar et al. 2019, "CTRL", section 4.1); 1 is off.
    temperature: the logits are divided by it; 0 takes the likeliest token (greedy decoding).
    top_k: keep the k likeliest tokens (all, if k is more); 0 or None is off.
    top_p: of these, keep the likeliest until their total probability reaches p, the one that crosses it included
    (Holtzman et al. 2019, "The Curious Case of Neural Text Degeneration").
    seed: makes sampling repeatable; None takes a seed from torch's global generator.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None

    def validate(self) -> None:
        """Raise UserError for a value out of range."""
        for name, value, possible, fix in (
            ("temperature", self.temperature, lambda x: x >= 0, "Use 0 (greedy) or more."),
            ("top_p", 1 if self.top_p is None else self.top_p, lambda x: 0 < x <= 1, "Use 0 < top_p <= 1."),
            ("repetition_penalty", self.repetition_penalty, lambda x: x > 0, "Use more than 0; 1 is off."),
        ):
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not possible(value):
                raise UserError(f"{name}={value} is not possible", name, fix)
        if self.top_k is not None and (self.top_k != 0 or isinstance(self.top_k, bool)):
            require_positive(top_k=self.top_k)
        if self.seed is not None and (not isinstance(self.seed, int) or self.seed < 0):
            raise UserError(f"seed={self.seed} is not possible", "seed", "Use an integer of at least 0.")


def generate(
    gpt: GPT,
    tokens: Tensor | Sequence[Tensor],
    max_new_tokens: int,
    *,
    stop_tokens: Sequence[int] = (),
    use_cache: bool = True,
    **sampling: Any,
) -> Any:
    """Continue each row of `tokens` by at most `max_new_tokens` tokens; `sampling` as for `Sampling`.

    tokens: (B, T) int64, T at least 1; returns (B, T + new). Or a list of 1-D tensors of any lengths; returns a list.
    stop_tokens: a row ends with the first of them that it generates. In a list it is that much shorter; in a tensor the
    token is repeated to the end of the longest row. use_cache: False recomputes everything for each token; the result
    is the same. A model with a layer that keeps nothing in the cache is computed without one.

    Raises UserError for an empty prompt, an unknown token, a bad option, or weights that are not finite.
    """
    prompts = [row.tolist() for row in tokens]
    device = gpt.token_embedding.weight.device
    stops = torch.tensor(list(stop_tokens), dtype=torch.long, device=device)
    lengths = torch.zeros(len(prompts), dtype=torch.long, device=device)  # of what is new
    stopped = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    columns: list[Tensor] = []
    for column in decode(gpt, prompts, max_new_tokens, Sampling(**sampling), use_cache):
        columns.append(torch.where(stopped, columns[-1], column) if columns else column)
        lengths += ~stopped
        if len(stops):
            stopped |= torch.isin(column, stops)
            if stopped.all():
                break
    new = torch.stack(columns, dim=1) if columns else torch.empty(len(prompts), 0, dtype=torch.long, device=device)
    if isinstance(tokens, Tensor):
        return torch.cat([tokens, new.to(tokens.device)], dim=1)
    rows = zip(tokens, new, lengths.tolist(), strict=True)
    return [torch.cat([prompt, row[:length].to(prompt.device)]) for prompt, row, length in rows]


@torch.no_grad()
def decode(
    gpt: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    use_cache: bool = True,
    repeats: Sequence[int] | None = None,
    vocab_size: int | None = None,
) -> Iterator[Tensor]:
    """Yield the next token of every row, (B,) int64, `max_new_tokens` times.

    vocab_size: of the tokenizer, which may be less than that of a padded model; the ids beyond it are never chosen.
    repeats: for each row, how many rows before it have the same prompt, so that equal prompts get different samples;
    None counts within this batch. The GPT runs in evaluation mode, and is in its own mode while the caller has control.
    """
    sampling.validate()
    check_methods(gpt)
    check_prompts(prompts, gpt.config["vocab_size"])
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 0:
        raise UserError(f"max_new_tokens={max_new_tokens} is not possible", "max_new_tokens", "Use 0 or more.")
    if not prompts:
        return
    rows = Rows(gpt, prompts, max_new_tokens, use_cache, track_seen=sampling.repetition_penalty != 1)
    uniform = uniform_numbers(prompts, max_new_tokens, sampling, repeats or count_repeats(map(tuple, prompts)))
    uniform = uniform.to(rows.device, torch.float32 if rows.device.type == "mps" else torch.float64)
    for step in range(max_new_tokens):
        with evaluation(gpt):
            logits = gpt.logits(rows.hidden())[:, :vocab_size].float()
        seen = None if rows.seen is None else rows.seen[:, :vocab_size]
        column = sample(logits, sampling, uniform[:, step] if uniform.numel() else None, seen)
        yield column
        rows.append(column)


class Rows:
    """A batch of growing sequences: what each row's context is, and which rows the cache must be prefilled with.

    A step is `hidden` (one token for rows in the cache, a prefill for the others) and `append`, which shifts a full
    context.
    """

    def __init__(
        self, gpt: GPT, prompts: Sequence[Sequence[int]], max_new_tokens: int, use_cache: bool, track_seen: bool
    ):
        self.gpt, self.device = gpt, gpt.token_embedding.weight.device
        self.ends = [len(prompt) for prompt in prompts]
        self.starts = [max(0, end - gpt.block_size) for end in self.ends]  # of each row's context
        padded = [torch.tensor([*prompt, *[0] * max_new_tokens]) for prompt in prompts]
        self.tokens = pad_sequence(padded, batch_first=True).to(self.device)
        self.every = torch.arange(len(prompts), device=self.device)
        self.seen: Tensor | None = None  # (B, V), whether a row contains a token
        if track_seen:
            self.seen = torch.zeros(len(prompts), gpt.config["vocab_size"], dtype=torch.bool, device=self.device)
            for row, prompt in enumerate(prompts):
                self.seen[row, list(prompt)] = True
        size = min(gpt.block_size, max(self.ends) + max_new_tokens)
        self.cache = gpt.new_cache(len(prompts), size) if use_cache and takes_cache(gpt) else None
        self.stale = list(range(len(prompts)))  # rows whose context is not in the cache

    def hidden(self) -> Tensor:
        """The hidden states of the last token of every row: (B, C)."""
        if not self.stale:
            return self.decode_one()
        contexts = [self.tokens[row, self.starts[row] : self.ends[row]] for row in self.stale]
        if len(self.stale) == len(self.every):
            return self.prefill(contexts)
        assert self.cache is not None
        for row in self.stale:
            self.cache.lengths[row] = 0  # overwritten below
        hidden = self.decode_one()
        hidden[self.stale] = self.prefill(contexts)
        return hidden

    def decode_one(self) -> Tensor:
        """Feed the newest token of every row: (B, C)."""
        newest = self.tokens[self.every, [end - 1 for end in self.ends]]
        return self.gpt.hidden(newest[:, None], self.cache)[:, -1]

    def prefill(self, contexts: list[Tensor]) -> Tensor:
        """Feed the whole context of every stale row, equal ones once: (stale rows, C). They are in the cache then."""
        distinct: dict[tuple[int, ...], int] = {}
        which = [distinct.setdefault(tuple(context.tolist()), len(distinct)) for context in contexts]
        lengths = [len(context) for context in distinct]
        padded = pad_sequence([torch.tensor(context) for context in distinct], batch_first=True).to(self.device)
        part: KVCache | None = None
        if self.cache is not None and len(distinct) == len(self.every):  # all rows are stale and different
            part, self.cache.lengths = self.cache, [0] * len(distinct)
        elif self.cache is not None:
            part = self.gpt.new_cache(len(distinct), max(lengths))
        states = self.gpt.hidden(padded) if part is None else self.gpt.hidden(padded, part)
        hidden = states[range(len(distinct)), [length - 1 for length in lengths]]
        if part is not None and not part.is_complete:
            self.cache = None
        if self.cache is not None and part is not None:
            part.lengths = lengths
            if part is not self.cache:
                self.cache.copy(self.stale, part, which)
        return hidden[which]

    def append(self, column: Tensor) -> None:
        """Add a token to every row; where that exceeds the context, drop its older half."""
        self.tokens[self.every, self.ends] = column
        if self.seen is not None:
            self.seen[self.every, column] = True
        self.ends = [end + 1 for end in self.ends]
        block_size = self.gpt.block_size
        full = [row for row, end in enumerate(self.ends) if end - self.starts[row] > block_size]
        for row in full:
            self.starts[row] = self.ends[row] - (block_size + 1) // 2
        self.stale = full if self.cache is not None else list(range(len(self.ends)))


def sample(logits: Tensor, sampling: Sampling, uniform: Tensor | None, seen: Tensor | None = None) -> Tensor:
    """Sample one token for each row of (B, V) float32 logits: (B,) int64.

    uniform: (B,) numbers in [0, 1), not needed for temperature 0. seen: (B, V), the tokens that a row contains.
    """
    if not all(map(math.isfinite, torch.aminmax(logits))):  # NaN and infinity come through
        raise UserError("the model's weights are not finite numbers", "generate", "Take an earlier checkpoint.")
    if seen is not None:
        penalty = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.temperature == 0 or uniform is None:
        return logits.argmax(dim=-1)
    V = logits.shape[-1]
    candidates = None
    k = min(sampling.top_k or V, V)
    if k < V or (sampling.top_p or 1) < 1:
        logits, candidates = logits.topk(k)  # sorted, (B, k)
    temperature = max(sampling.temperature, torch.finfo(logits.dtype).tiny)  # less would be 0 in this precision
    probabilities = torch.softmax((logits - logits.amax(dim=-1, keepdim=True)) / temperature, dim=-1)
    cumulative = probabilities.to(uniform.dtype).cumsum(dim=-1)
    if candidates is not None and sampling.top_p is not None:
        before = cumulative - probabilities
        probabilities = probabilities.masked_fill(before >= sampling.top_p * cumulative[:, -1:], 0)
        cumulative = probabilities.to(uniform.dtype).cumsum(dim=-1)
    # The first token at which the cumulative probability is above the random number: inverse transform sampling.
    place = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True).clamp(max=V - 1)
    return (place if candidates is None else candidates.gather(-1, place.clamp(max=candidates.shape[-1] - 1)))[:, 0]


def count_repeats(rows: Iterable[Hashable]) -> list[int]:
    """How many earlier rows each row is equal to."""
    seen: Counter[Hashable] = Counter()
    repeats = []
    for row in rows:
        repeats.append(seen[row])
        seen[row] += 1
    return repeats


def uniform_numbers(prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, repeats: Sequence[int]) -> Tensor:
    """Random numbers in [0, 1), (B, n); those of a row are a function of the seed, its prompt and its repeat.

    They don't depend on the device, and those of a smaller n are the beginning of those of a larger one.
    """
    if sampling.temperature == 0:
        return torch.empty(0)
    seed = int(torch.randint(2**63 - 1, ())) if sampling.seed is None else sampling.seed
    keys = zip(repeats, prompts, strict=True)
    return torch.from_numpy(np.stack([np.random.default_rng([seed, r, *p]).random(n) for r, p in keys]))


def check_prompts(prompts: Sequence[Sequence[int]], vocab_size: int) -> None:
    """Raise UserError for a prompt that is empty or has a token that isn't in the vocabulary."""
    for prompt in prompts:
        if not len(prompt):
            raise UserError("the prompt is empty", "prompt", "Give at least one token.")
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            wrong = next(token for token in prompt if not 0 <= token < vocab_size)
            raise UserError(f"token {wrong} is not in the vocabulary of {vocab_size}", "prompt", "Check the tokenizer.")


@contextlib.contextmanager
def evaluation(gpt: GPT) -> Iterator[None]:
    """Put the GPT in evaluation mode, and each of its modules back in its own mode afterwards."""
    if not gpt.training:
        yield
        return
    training = [module for module in gpt.modules() if module.training]
    gpt.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True

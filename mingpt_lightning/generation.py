"""Generation: greedy, temperature, top-k, top-p and repetition penalty, with a key/value cache.

Each row of a batch is exactly what it would be alone: prompts may have different lengths, and with a seed the random
numbers of a row follow from the seed, the row's own prompt, and how many rows before it have the same one.

The window. A GPT sees `block_size` tokens. A longer prompt is cropped to its last `block_size` tokens. When the window
is full, its older half leaves, and the younger half is read again as a new beginning: the work per token has a bound,
however long the text gets, and what a row sees is a function of its own tokens alone.

It knows of tokens only; `completion.py` makes text of them.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mingpt_lightning.cache import Cache
from mingpt_lightning.errors import UserError, require_positive
from mingpt_lightning.gpt import GPT


class Sampling(NamedTuple):
    """How the next token is chosen, in this order.

    repetition_penalty: the logits of tokens that the row has, prompt included, are divided by it where positive and
    multiplied elsewhere (Keskar et al. 2019, "CTRL", section 4.1); 1 is off.
    temperature: the logits are divided by it; 0 takes the likeliest token, and ends here.
    top_k: only the k likeliest tokens are left (more than there are means all).
    top_p: of these, the likeliest ones until their probability reaches p, the one that crosses it included (Holtzman
    et al. 2019, "The Curious Case of Neural Text Degeneration").
    seed: makes the choice repeatable; None takes a seed from torch's global generator.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None

    def check(self) -> None:
        """Raise UserError for a value that means nothing."""
        for name, value, possible, fix in (
            ("temperature", self.temperature, lambda x: x >= 0, "Use 0 (greedy) or more."),
            ("top_p", 1 if self.top_p is None else self.top_p, lambda x: 0 < x <= 1, "Use a share: 0 < top_p <= 1."),
            ("repetition_penalty", self.repetition_penalty, lambda x: x > 0, "Use more than 0; 1 is off."),
        ):
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not possible(value):
                raise UserError(f"{name}={value} is not possible", name, fix)
        if self.top_k is not None:
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
    stop_tokens: a row ends with the first of them that it makes. In a list it is that much shorter; in a tensor the
    token is repeated to the end of the longest row. use_cache: False computes everything anew for each token; the
    result is the same.

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
    copies: Counter[tuple[int, ...]] | None = None,
) -> Iterator[Tensor]:
    """The next token of every row, `max_new_tokens` times: (B,) int64.

    copies: how many rows with each prompt came before, in earlier calls; it is brought up to date.
    The GPT runs in evaluation mode, and is as it was whenever the caller has a token in hand.
    """
    sampling.check()
    V, S = gpt.config["vocab_size"], gpt.block_size
    check_prompts(prompts, V)
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 0:
        raise UserError(f"max_new_tokens={max_new_tokens} is not possible", "max_new_tokens", "Use 0 or more.")
    B, device = len(prompts), gpt.token_embedding.weight.device
    if B == 0:
        return
    ends = [len(prompt) for prompt in prompts]
    starts = [max(0, end - S) for end in ends]  # where the window of each row starts
    tokens = pad_sequence([torch.tensor([*p, *[0] * max_new_tokens]) for p in prompts], batch_first=True).to(device)
    every_row = torch.arange(B, device=device)
    seen = None
    if sampling.repetition_penalty != 1:
        seen = torch.zeros(B, V, dtype=torch.bool, device=device)
        for row, prompt in enumerate(prompts):
            seen[row, list(prompt)] = True
    uniform = uniform_numbers(prompts, max_new_tokens, sampling, Counter() if copies is None else copies)
    uniform = uniform.to(device, torch.float32 if device.type == "mps" else torch.float64)
    cache = Cache(gpt, B, min(S, max(ends) + max_new_tokens)) if use_cache else None

    unread = list(range(B))  # rows whose window is new as a whole
    for step in range(max_new_tokens):
        with evaluation(gpt):
            hidden = torch.empty(B, gpt.config["n_embd"], dtype=gpt.token_embedding.weight.dtype, device=device)
            if cache is not None and len(unread) < B:
                for row in unread:
                    cache.lengths[row] = 0  # written over below
                hidden = gpt.hidden(tokens[every_row, [end - 1 for end in ends]][:, None], cache)[:, -1]
            if unread:
                hidden[unread] = read(gpt, [tokens[row, starts[row] : ends[row]] for row in unread], unread, cache)
            logits = gpt.logits(hidden).float()
        column = choose(logits, sampling, uniform[:, step] if uniform.numel() else None, seen)
        yield column
        tokens[every_row, ends] = column
        if seen is not None:
            seen[every_row, column] = True
        ends = [end + 1 for end in ends]
        full = [row for row in range(B) if ends[row] - starts[row] > S]
        for row in full:
            starts[row] = ends[row] - (S + 1) // 2
        unread = full if cache is not None else list(range(B))


def read(gpt: GPT, windows: list[Tensor], rows: list[int], cache: Cache | None) -> Tensor:
    """What the GPT makes of the last token of each window: (len(windows), C). Equal windows are read once.

    The cache's `rows` then have read them.
    """
    distinct: dict[tuple[int, ...], int] = {}
    which = [distinct.setdefault(tuple(window.tolist()), len(distinct)) for window in windows]
    lengths = [len(window) for window in distinct]
    padded = pad_sequence([torch.tensor(window) for window in distinct], batch_first=True).to(windows[0].device)
    if cache is None:
        part = None
    elif len(distinct) == len(cache.lengths):  # all rows are new and different
        part, cache.lengths = cache, [0] * len(distinct)
    else:
        part = Cache(gpt, len(distinct), max(lengths))
    hidden = gpt.hidden(padded, part)[range(len(distinct)), [length - 1 for length in lengths]]
    if cache is not None and part is not None:
        part.lengths = lengths
        if part is not cache:
            cache.copy(rows, part, which)
    return hidden[which]


def choose(logits: Tensor, sampling: Sampling, uniform: Tensor | None, seen: Tensor | None = None) -> Tensor:
    """One token for each row of (B, V) float32 logits: (B,) int64.

    uniform: (B,) numbers in [0, 1), not needed for temperature 0. seen: (B, V), the tokens that a row has.
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


def uniform_numbers(
    prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, copies: Counter[tuple[int, ...]]
) -> Tensor:
    """Random numbers in [0, 1) for each row, (B, n); a row's are a function of the seed, its prompt and its copies.

    They don't depend on the device, and those of a smaller n are the beginning of those of a larger one.
    """
    if sampling.temperature == 0:
        return torch.empty(0)
    seed = int(torch.randint(2**63 - 1, ())) if sampling.seed is None else sampling.seed
    numbers = np.empty((len(prompts), n))
    for row, prompt in zip(numbers, map(tuple, prompts), strict=True):
        row[:] = np.random.default_rng([seed, copies[prompt], *prompt]).random(n)
        copies[prompt] += 1
    return torch.from_numpy(numbers)


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
    """In here the GPT is in evaluation mode; afterwards each of its modules is in its own mode again."""
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

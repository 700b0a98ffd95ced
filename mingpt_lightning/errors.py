"""User mistakes: errors whose message is one line that says what is wrong, where, and how to fix it.

Raise `UserError` (or a subclass) for anything that the user can correct; the command line prints it without a traceback
and exits with its `code`. Any other exception that escapes is a bug of this library and keeps its traceback.
"""

import difflib
import errno
import math
import re
from collections.abc import Iterable, Sequence

FULL_OR_FORBIDDEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""Operating-system errors for a disk that is full, read-only or broken."""


class UserError(ValueError):
    """A mistake in usage, configuration or data (exit code 2).

    what: the problem, with the values in question. where: the parameter or file. fix: what to do about it.
    """

    code = 2

    def __init__(self, what: str, where: str = "", fix: str = ""):
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        return self.what + (f" ({self.where})" if self.where else "") + "." + (f" {self.fix}" if self.fix else "")


class CheckpointError(UserError):
    """A checkpoint that is missing, corrupted or not one of this library's (exit code 3)."""

    code = 3


class ResourceError(UserError):
    """Out of disk space, memory or permissions (exit code 4)."""

    code = 4


class DivergedError(UserError):
    """The loss or a gradient is no longer finite (exit code 5)."""

    code = 5


def resource_error(error: BaseException) -> ResourceError | None:
    """The ResourceError for an exception about memory, disk space or permissions; None for any other exception."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or re.search(r"can.t allocate memory|out of memory", text, re.IGNORECASE):
        wanted = re.search(r"[Tt]ried to allocate ([\d.]+ *\w+)", text)
        amount = re.sub(r"^(\d+) bytes$", lambda n: f"{int(n[1]) / 1e9:,.2f} GB", wanted[1]) if wanted else ""
        what = "out of memory" + (f": could not allocate {amount} more" if amount else "")
        fix = "Halve batch_size and double accumulate_grad_batches, or use a smaller model."
        return ResourceError(what, "batch_size", fix)
    if isinstance(error, OSError) and error.errno in FULL_OR_FORBIDDEN:
        fix = "Free some space, fix the permissions, or choose another place."
        return ResourceError(f"{error.filename or 'a file'}: {error.strerror}", "disk", fix)
    return None


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint for a mistyped name: "Did you mean 'n_layer'?", or the list of choices when none is near."""
    known = sorted(choices)
    if not known:
        return "There is nothing to set here."
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else f"Choose one of: {', '.join(known)}."


def require_positive(**sizes: int) -> None:
    """Raise UserError for the first size that is not an integer of at least 1."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name}={value} is not a positive integer", name, "Use 1 or more.")


def require_number(**values: float) -> None:
    """Raise UserError for the first value that is not a finite number above 0."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UserError(f"{name}={value} is not a number above 0", name, "Use a positive number.")


def check_gpt_sizes(
    n_layer: int,
    n_head: int,
    n_embd: int,
    dropout: float | Sequence[float] = 0.0,
    n_kv_head: int | None = None,
    head_dim: int | None = None,
) -> None:
    """Raise UserError for the sizes of a GPT that cannot be built. Needs no torch, so a bad config is refused early."""
    require_positive(n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    optional = {"n_kv_head": n_kv_head, "head_dim": head_dim}
    require_positive(**{name: value for name, value in optional.items() if value is not None})
    if n_kv_head is not None and n_head % n_kv_head:
        near = ", ".join(str(n) for n in range(1, n_head + 1) if n_head % n == 0)
        raise UserError(f"n_head={n_head} is not divisible by n_kv_head={n_kv_head}", "n_kv_head", f"Try {near}.")
    if n_embd % n_head and head_dim is None:
        below, above = n_embd // n_head * n_head, (n_embd // n_head + 1) * n_head
        near = f"{below} or {above}" if below else f"{above}"
        raise UserError(f"n_embd={n_embd} is not divisible by n_head={n_head}", "n_embd", f"Try n_embd={near}.")
    rates = [*dropout] if isinstance(dropout, Sequence) else [dropout] * 3
    if len(rates) != 3 or not all(0 <= rate < 1 for rate in rates):
        raise UserError(f"dropout={dropout} is not in [0, 1)", "dropout", "Use 0.0 to switch it off.")


def check_output(vocab_size: int, n_output: int | None, tie_embeddings: bool) -> None:
    """Raise UserError for a head of `n_output` tokens that no model of this vocabulary can have."""
    if n_output is None:
        return
    require_positive(n_output=n_output)
    if n_output > vocab_size:
        raise UserError(f"n_output={n_output} is more than vocab_size={vocab_size}", "n_output", "Use less.")
    if tie_embeddings:
        what = f"n_output={n_output} needs a head of its own, and it is the token embedding"
        raise UserError(what, "n_output", "Set tie_embeddings to false.")

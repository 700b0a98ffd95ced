"""The console: everything that isn't generated text goes to standard error, and a reader that leaves does no harm."""

import contextlib
import sys
from typing import NoReturn

from rich.console import Console

from mingpt_lightning.errors import UserError


class Screen(Console):
    """A rich Console that survives a closed pipe or terminal: what is written from then on is dropped."""

    def on_broken_pipe(self) -> None:
        self.quiet = True

    def _check_buffer(self) -> None:
        with contextlib.suppress(OSError):
            super()._check_buffer()


console = Screen(stderr=True, highlight=False, soft_wrap=True)


def say(error: UserError) -> None:
    """Print a user's mistake as one line on standard error."""
    with contextlib.suppress(OSError):  # standard error is closed
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


def fail(error: UserError) -> NoReturn:
    """Print a user's mistake and exit with its code."""
    say(error)
    sys.exit(error.code)

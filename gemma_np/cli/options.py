"""The numeric options of all commands: one table of their ranges, for `--help` and for the check of a value."""

import argparse
import math
from typing import Any, NamedTuple

from gemma_np.config import MOST_LAYERS
from gemma_np.errors import quoted

_MOST = 2**31 - 1


class Range(NamedTuple):
    """The numbers that an option takes."""

    low: float
    high: float = _MOST
    whole: bool = True
    above: bool = False  # whether `low` itself is excluded
    below: bool = False  # whether `high` itself is excluded

    def __str__(self) -> str:
        if self.whole and not self.below and self.high >= _MOST:
            return f"{self.low} or more"
        if not self.above and not self.below:
            return f"{self.low:g} to {self.high:.15g}"
        low = f"more than {self.low:g}" if self.above else f"{self.low:g} or more"
        return f"{low}, {'less than' if self.below else 'at most'} {self.high:.15g}"

    def read(self, text: str) -> int | float:
        """Return the number that a text stands for. Raises ArgumentTypeError when it is none of this range."""
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:
            value = math.nan
        in_range = self.low <= value <= self.high
        if not in_range or (self.above and value == self.low) or (self.below and value == self.high):
            kind = "a whole number" if self.whole else "a number"
            limits = f"at most {self.high}" if self.whole and value > self.high else str(self)
            raise argparse.ArgumentTypeError(f"{quoted(text)}, expected {kind}, {limits}")
        return value


OPTIONS = {
    "--batch-size": Range(1, 65_536),
    "--beta": Range(0, 1, whole=False, above=True, below=True),
    "--calibration-length": Range(2),
    "--calibration-samples": Range(1),
    "--chunk": Range(1),
    "--context": Range(1),
    "--decode": Range(0),
    "--distill": Range(1),
    "--draft-tokens": Range(1, 1024),
    "--eval-every": Range(1),
    "--generation": Range(1, 3),
    "--grad-accum-steps": Range(1),
    "--group-size": Range(2),
    "--head-dim": Range(2),
    "--heads": Range(1),
    "--hidden-size": Range(1),
    "--intermediate-size": Range(1),
    "--kv-heads": Range(1),
    "--layers": Range(1, MOST_LAYERS),
    "--learning-rate": Range(1e-12, 1, whole=False),
    "--logprobs": Range(0, 1000),
    "--max-grad-norm": Range(1e-12, 1e9, whole=False),
    "--max-new-tokens": Range(1),
    "--min-p": Range(0, 1, whole=False),
    "--num-fewshot": Range(0),
    "--prompt-tokens": Range(1),
    "--repetition-penalty": Range(0.01, 100, whole=False),
    "--save-every": Range(1),
    "--seed": Range(0, 2**63 - 1),
    "--seq-len": Range(1),
    "--sliding-window": Range(1),
    "--steps": Range(1),
    "--stride": Range(1),
    "--temperature": Range(0, 1e9, whole=False),
    "--temperature of distillation": Range(0.01, 100, whole=False),
    "--top-k": Range(1),
    "--top-p": Range(0, 1, whole=False, above=True),
    "--val-fraction": Range(0, 1, whole=False, below=True),
    "--vocab-size": Range(1, 2**20),
    "--warmup-steps": Range(0),
    "--weight-decay": Range(0, 1000, whole=False),
}


def add_number(
    parser: argparse._ActionsContainer,
    flag: str,
    meaning: str,
    default: Any = None,
    *,
    row: str | None = None,
    **options: Any,
) -> None:
    """Add a numeric option; row: its row in `OPTIONS` (default: its own); options: those of `add_argument`."""
    allowed = OPTIONS[row or flag]
    shown = f"; default: {default}" if default is not None else ""
    options = {"metavar": "N", "default": default, "type": allowed.read} | options
    parser.add_argument(flag, help=f"{meaning} ({allowed}{shown})", **options)

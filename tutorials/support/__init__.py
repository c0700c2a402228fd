"""What the tutorials need beside the package: exercises that check an answer, lines of the source, and plots."""

from support.exercise import check
from support.source import lines

__all__ = ["check", "lines"]

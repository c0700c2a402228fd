"""What the tutorials need beside the model: exercises that check themselves, source lines, pictures."""

from support.exercise import check
from support.source import lines

__all__ = ["check", "lines"]

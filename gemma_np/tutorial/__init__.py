"""What the tutorials need beside the model: exercises that check themselves, source lines, pictures."""

from gemma_np.tutorial.exercise import check
from gemma_np.tutorial.source import lines

__all__ = ["check", "lines"]

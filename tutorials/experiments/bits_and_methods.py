"""What quantization costs: formats and methods, on the bundled student and on the real Gemma 3 270M.

python tutorials/experiments/bits_and_methods.py
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from compressing import HERE, run
from matplotlib.figure import Figure

import gemma_np
from gemma_np import Gemma
from gemma_np.compression.export_gguf import export_gguf
from gemma_np.compression.quantization import Scheme
from gemma_np.compression.quantize_model import quantize_model

EIGHT = Scheme("int8")
ALL = ("round", "clip", "gptq", "awq")
SCHEMES = {  # setting: scheme, scheme of the embedding, methods
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
MIXTURES = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "iq4_nl", "q3_k_m", "q2_k")
EXACT = 1e-5  # nats per token; the real model has been in q4_k_m before


def in_scheme(model: Gemma, scheme: Scheme, embedding: Scheme, method: str = "round", ids: np.ndarray | None = None):
    """Return the model with its matrices and its embedding quantized in these schemes."""
    return Gemma(model.config, dict(quantize_model(model, scheme, method, ids, embedding)), model.tokenizer)


def in_mixture(model: Gemma, mixture: str, ids: np.ndarray | None = None) -> Gemma:
    """Return the model as a GGUF file of this mixture holds it; calibration ids [N, T] give an importance matrix."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        export_gguf(model, mixture, path, ids)
        return gemma_np.load(path)


def rows(model: Gemma, ids: np.ndarray) -> Iterator[tuple[str, str, Callable[[], Gemma]]]:
    """Yield the model quantized in every way."""
    for setting, (scheme, embedding, methods) in SCHEMES.items():
        for method in methods:
            yield method, setting, partial(in_scheme, model, scheme, embedding, method, ids)
    for mixture in MIXTURES:
        yield "blocks", mixture, partial(in_mixture, model, mixture)
        yield "imatrix", mixture, partial(in_mixture, model, mixture, ids)


def plot(result: dict[str, list[dict]]) -> None:
    """Plot the KL from the original against the bytes, one colour per method, one panel per model."""
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    for axes, (label, measured) in zip(figure.subplots(1, len(result)), result.items(), strict=True):
        quantized = [row for row in measured if row["setting"] != "bfloat16" and row["kl"] > EXACT]
        for method in dict.fromkeys(row["method"] for row in quantized):
            chosen = sorted((row for row in quantized if row["method"] == method), key=lambda row: row["kl"])
            line = "o-" if method in ("blocks", "imatrix") else "o"
            axes.plot([row["bytes"] / 1e6 for row in chosen], [row["kl"] for row in chosen], line, label=method)
            if method == "blocks":
                names: dict[tuple[float, float], list[str]] = {}
                for row in chosen:
                    names.setdefault((row["bytes"] / 1e6, row["kl"]), []).append(row["setting"])
                for place, same in names.items():
                    axes.annotate(" = ".join(same), place, (6, 4), textcoords="offset points", fontsize=8)
        axes.set(title=label, xlabel="weights (MB)", ylabel="KL from the original (nats per token)", yscale="log")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.suptitle("Quantized: what a byte buys")
    figure.savefig(HERE / "bits_and_methods.svg")


if __name__ == "__main__":
    plot(run("bits_and_methods", __doc__, rows))

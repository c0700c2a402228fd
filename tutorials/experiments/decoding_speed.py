"""How long each format takes to decode a token, on the real Gemma 3 270M. Needs a quiet machine; takes ten minutes.

python tutorials/experiments/decoding_speed.py
"""

import json

import numpy as np
from bits_and_methods import MIXTURES, SCHEMES, in_mixture, in_scheme
from compressing import HERE, REAL, models

from gemma_np import Gemma
from gemma_np.compression.benchmark import decoding_speed

ROUNDS = 7
PROMPT = "The moon rose over the quiet harbour while the sailors sang of home. " * 5
PATH = HERE / "decoding_speed.json"


def time_ratio(model: Gemma, original: Gemma, text: np.ndarray) -> float:
    """Return how long a model takes for a token if the original takes 1: the median of alternating measurements."""
    return float(np.median([decoding_speed(original, text) / decoding_speed(model, text) for _ in range(ROUNDS)]))


if __name__ == "__main__":
    ratios: dict[str, float] = json.loads(PATH.read_text()) if PATH.exists() else {}
    model = models()[REAL]
    text = np.array(model.require_tokenizer().encode(PROMPT))
    for setting in (*SCHEMES, *MIXTURES):
        if setting not in ratios:
            quantized = in_scheme(model, *SCHEMES[setting][:2]) if setting in SCHEMES else in_mixture(model, setting)
            ratios[setting] = round(time_ratio(quantized, model, text), 2)
            PATH.write_text(json.dumps(ratios, indent=2) + "\n")
        print(f"{setting:23}{ratios[setting]:.2f}", flush=True)

"""A reading as one page of HTML that needs nothing else: no network, no library."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.inspection.reading import Reading

_TEMPLATE = Path(__file__).parent / "page.html"


def page(reading: Reading, config: GemmaConfig, name: str) -> str:
    """The page of a reading; name: what the model is called."""
    data = json.dumps(_data(reading, config, name), ensure_ascii=False, separators=(",", ":"))
    # In a script element "</script>" would end it, and "<!--" would open a comment.
    return _TEMPLATE.read_text(encoding="utf-8").replace("{{data}}", data.replace("<", "\\u003c"))


def _data(reading: Reading, config: GemmaConfig, name: str) -> dict[str, Any]:
    return {
        "model": name,
        "type": config.model_type,
        "heads": config.num_attention_heads,
        "windows": [config.window(layer) for layer in range(config.num_hidden_layers)],
        "cap": config.final_logit_softcapping,
        "ids": reading.ids,
        "tokens": reading.tokens,
        # probabilities as whole numbers out of 65,535: half the bytes of float32
        "attention": base64.b64encode(np.round(reading.attention * 65535).astype("<u2").tobytes()).decode(),
        "residual": _rounded(reading.residual),
        "lensTokens": reading.lens_tokens.tolist(),
        "lensProbs": _rounded(reading.lens_probs),
        "nextTokens": reading.next_tokens.tolist(),
        "nextLogits": _rounded(reading.next_logits),
        "nextUncapped": _rounded(reading.next_uncapped),
        "nextProbs": _rounded(reading.next_probs),
        "entropy": _rounded(reading.entropy),
        "surprise": _rounded(reading.surprise),
    }


def _rounded(values: np.ndarray) -> Any:
    return np.round(values.astype(np.float64), 4).tolist()

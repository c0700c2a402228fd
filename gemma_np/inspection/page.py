"""Write an inspection as one HTML page that needs no network and no library."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.inspection.inspect_text import Inspection

_TEMPLATE = Path(__file__).parent / "page.html"


def page(inspection: Inspection, config: GemmaConfig, name: str) -> str:
    """Return the HTML page of an inspection; name: of the model."""
    data = json.dumps(_data(inspection, config, name), ensure_ascii=False, separators=(",", ":"))
    # Within a script element, "</script>" would end it and "<!--" would open a comment.
    return _TEMPLATE.read_text(encoding="utf-8").replace("{{data}}", data.replace("<", "\\u003c"))


def _data(inspection: Inspection, config: GemmaConfig, name: str) -> dict[str, Any]:
    return {
        "model": name,
        "type": config.model_type,
        "heads": config.num_attention_heads,
        "windows": [config.window(layer) for layer in range(config.num_hidden_layers)],
        "cap": config.final_logit_softcapping,
        "ids": inspection.ids,
        "tokens": inspection.tokens,
        # probabilities as integers from 0 to 65,535: half the bytes of float32
        "attention": base64.b64encode(np.round(inspection.attention * 65535).astype("<u2").tobytes()).decode(),
        "residual": _rounded(inspection.residual),
        "lensTokens": inspection.lens_tokens.tolist(),
        "lensProbs": _rounded(inspection.lens_probs),
        "nextTokens": inspection.next_tokens.tolist(),
        "nextLogits": _rounded(inspection.next_logits),
        "nextUncapped": _rounded(inspection.next_uncapped),
        "nextProbs": _rounded(inspection.next_probs),
        "entropy": _rounded(inspection.entropy),
        "surprise": _rounded(inspection.surprise),
    }


def _rounded(values: np.ndarray) -> Any:
    return np.round(values.astype(np.float64), 4).tolist()

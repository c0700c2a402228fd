"""Mistakes in the block: its post-norms."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.model.block import block
from gemma_np.oracle.mistakes.mistake import GEMMA_2_AND_3, mistake
from gemma_np.scope import Scope, Tape, prefixed

_parts: Any = importlib.import_module("gemma_np.model.block")  # where another mistake may replace its parts


@mistake(
    fix="apply post_attention_layernorm and post_feedforward_layernorm before the residual is added",
    right=block,
    replaces="model.transformer.block",
    shows="*.post_*_layernorm",
    models=GEMMA_2_AND_3,
)
def postnorm_missing(
    x: np.ndarray, weights: Scope, config: GemmaConfig, layer: int, cache: Any, tape: Tape
) -> np.ndarray:
    """The outputs of attention and feed-forward are not normalized.

    Add the outputs of attention and feed-forward as they are: x [..., T, D] -> [..., T, D].
    """
    y = tape("input_layernorm", _parts.rms_norm(x, weights["input_layernorm.weight"], config.rms_norm_eps))
    y = _parts.attention(y, weights / "self_attn", config, layer, cache, prefixed(tape, "self_attn"))
    x = tape("resid_mid", x + tape("post_attention_layernorm", y))
    y = _parts.rms_norm(x, weights["pre_feedforward_layernorm.weight"], config.rms_norm_eps)
    y = _parts.feed_forward(tape("pre_feedforward_layernorm", y), weights / "mlp", prefixed(tape, "mlp"))
    return tape("resid_post", x + tape("post_feedforward_layernorm", y))


@mistake(
    fix="normalize the output of attention, then add it",
    right=block,
    replaces="model.transformer.block",
    shows=("*.post_attention_layernorm", "*.resid_mid"),
    models=GEMMA_2_AND_3,
)
def postnorm_misplaced(
    x: np.ndarray, weights: Scope, config: GemmaConfig, layer: int, cache: Any, tape: Tape
) -> np.ndarray:
    """The post-attention norm is applied to the sum with the residual.

    Add the output of attention, then normalize the sum: x [..., T, D] -> [..., T, D].
    """
    y = tape("input_layernorm", _parts.rms_norm(x, weights["input_layernorm.weight"], config.rms_norm_eps))
    y = _parts.attention(y, weights / "self_attn", config, layer, cache, prefixed(tape, "self_attn"))
    x = _parts.rms_norm(x + y, weights["post_attention_layernorm.weight"], config.rms_norm_eps)
    x = tape("resid_mid", tape("post_attention_layernorm", x))
    y = _parts.rms_norm(x, weights["pre_feedforward_layernorm.weight"], config.rms_norm_eps)
    y = _parts.feed_forward(tape("pre_feedforward_layernorm", y), weights / "mlp", prefixed(tape, "mlp"))
    y = _parts.rms_norm(y, weights["post_feedforward_layernorm.weight"], config.rms_norm_eps)
    return tape("resid_post", x + tape("post_feedforward_layernorm", y))


@mistake(
    fix="use post_attention_layernorm for the output of attention, pre_feedforward_layernorm for the input of mlp",
    right=block,
    replaces="model.transformer.block",
    shows=("*.post_attention_layernorm", "*.pre_feedforward_layernorm"),
    models=GEMMA_2_AND_3,
)
def norm_names_crossed(x: np.ndarray, weights: Scope, *rest: Any, original: Callable[..., np.ndarray]) -> np.ndarray:
    """The weights of post_attention_layernorm and pre_feedforward_layernorm are swapped.

    Run the block with two weights swapped: x [..., T, D] -> [..., T, D].
    """
    crossed = dict(weights)
    crossed["post_attention_layernorm.weight"] = weights["pre_feedforward_layernorm.weight"]
    crossed["pre_feedforward_layernorm.weight"] = weights["post_attention_layernorm.weight"]
    return original(x, Scope(crossed), *rest)

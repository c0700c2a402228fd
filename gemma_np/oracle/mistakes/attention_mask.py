"""Mistakes in what a query sees: the window, and positions in decoding."""

from collections.abc import Callable, Sequence

import numpy as np

from gemma_np.config import GLOBAL, GemmaConfig
from gemma_np.model.attention_mask import attention_mask
from gemma_np.oracle.mistakes.mistake import mistake

Mask = Callable[[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray, int | None], np.ndarray]


@mistake(
    "window-parity",
    "the layers that should be local are global, and the other way round",
    fix="make the even layers local, from layer 0 on",
    right=GemmaConfig.window,
    replaces="config.GemmaConfig.window",
    shows="*.probs",
    models=("gemma2",),
)
def window_parity(config: GemmaConfig, layer: int) -> int | None:
    """Return the window for global layers, and none for local ones."""
    return config.sliding_window if config.layer_types[layer] == GLOBAL else None


@mistake(
    "window-off-by-one",
    "a local layer sees window + 1 keys",
    fix="let a query see keys fewer than `window` positions back: itself and window - 1 others",
    right=attention_mask,
    replaces="model.attention.attention_mask",
    shows="*.probs",
    models=("gemma2", "gemma3_text"),
)
def window_off_by_one(queries: range, keys: np.ndarray, window: int | None, *, original: Mask) -> np.ndarray:
    """Show one key more: queries [T], keys [S] -> bool [T, S]."""
    return original(queries, keys, window and window + 1)


@mistake(
    "window-ignored",
    "local layers see everything",
    fix="let them see the last `window` keys",
    right=GemmaConfig.window,
    replaces="config.GemmaConfig.window",
    shows="*.probs",
    models=("gemma2", "gemma3_text"),
)
def window_ignored(config: GemmaConfig, layer: int) -> int | None:
    """Return no window for any layer."""
    return None


@mistake(
    "window-all-layers",
    "global layers have the window, too",
    fix="let them see everything up to the query",
    right=GemmaConfig.window,
    replaces="config.GemmaConfig.window",
    shows="*.probs",
    models=("gemma2", "gemma3_text"),
)
def window_all_layers(config: GemmaConfig, layer: int) -> int | None:
    """Return the window for every layer."""
    return config.sliding_window


@mistake(
    "decode-mask-index",
    "in decoding, the mask takes a token's row in its pass for its position",
    fix="count positions from the length of the cache",
    right=attention_mask,
    replaces="model.attention.attention_mask",
    shows="*.probs",
)
def decode_mask_index(
    queries: range, keys: np.ndarray, window: int | None, *, original: Mask, lengths: Sequence[int]
) -> np.ndarray:
    """Count the rows of each pass from zero: queries [T], keys [S] -> bool [T, S]."""
    rows = np.concatenate([np.arange(length) for length in lengths])
    return original(rows, keys, window)


@mistake(
    "ring-positions",
    "once the ring of a local layer has wrapped, the mask takes a slot's number for its key's position",
    fix="compute the position of the key in each slot",
    right=attention_mask,
    replaces="model.attention.attention_mask",
    shows="*.probs",
    models=("gemma2", "gemma3_text"),
)
def ring_positions(
    queries: range, keys: np.ndarray, window: int | None, *, original: Mask, lengths: Sequence[int]
) -> np.ndarray:
    """Compare slots in every pass but the first: queries [T], keys [S] -> bool [T, S]."""
    mask = original(queries, keys, window)
    if not window:
        return mask
    in_first_pass = np.arange(sum(lengths)) < lengths[0]  # [T]
    up_to_its_slot = np.asarray(keys) % window <= np.asarray(queries)[:, None] % window
    return mask & (up_to_its_slot | in_first_pass[:, None])

"""Mistakes in the attention mask: the window, and positions in decoding."""

from collections.abc import Callable, Sequence

import numpy as np

from gemma_np.config import GLOBAL, GemmaConfig
from gemma_np.model.attention_mask import attention_mask
from gemma_np.oracle.mistakes.mistake import GEMMA_2_AND_3, mistake

Mask = Callable[[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray, int | None], np.ndarray]


@mistake(
    fix="make even layers local, starting with layer 0",
    right=GemmaConfig.window,
    replaces="config.GemmaConfig.window",
    shows="*.probs",
    models=("gemma2",),
)
def window_parity(config: GemmaConfig, layer: int) -> int | None:
    """Local and global layers are swapped.

    Return the window for global layers and None for local ones.
    """
    return config.sliding_window if config.layer_types[layer] == GLOBAL else None


@mistake(
    fix="let a query see keys fewer than `window` positions back: itself and window - 1 others",
    right=attention_mask,
    replaces="model.attention.attention_mask",
    shows="*.probs",
    models=GEMMA_2_AND_3,
)
def window_off_by_one(queries: range, keys: np.ndarray, window: int | None, *, original: Mask) -> np.ndarray:
    """A local layer sees window + 1 keys.

    Show one more key: queries [T], keys [S] -> bool [T, S].
    """
    return original(queries, keys, window and window + 1)


@mistake(
    fix="mask keys outside the window in local layers",
    right=GemmaConfig.window,
    replaces="config.GemmaConfig.window",
    shows="*.probs",
    models=GEMMA_2_AND_3,
)
def window_ignored(config: GemmaConfig, layer: int) -> int | None:
    """Local layers ignore the window.

    Return None for every layer.
    """
    return None


@mistake(
    fix="let global layers see all keys up to the query",
    right=GemmaConfig.window,
    replaces="config.GemmaConfig.window",
    shows="*.probs",
    models=GEMMA_2_AND_3,
)
def window_all_layers(config: GemmaConfig, layer: int) -> int | None:
    """Global layers use the window as well.

    Return the window for every layer.
    """
    return config.sliding_window


@mistake(
    fix="count positions from the length of the cache",
    right=attention_mask,
    replaces="model.attention.attention_mask",
    shows="*.probs",
)
def decode_mask_index(
    queries: range, keys: np.ndarray, window: int | None, *, original: Mask, lengths: Sequence[int]
) -> np.ndarray:
    """In decoding, the mask uses a token's row in its pass as its position.

    Count the rows of each pass from zero: queries [T], keys [S] -> bool [T, S].
    """
    rows = np.concatenate([np.arange(length) for length in lengths])
    return original(rows, keys, window)


@mistake(
    fix="compute the position of the key in each slot",
    right=attention_mask,
    replaces="model.attention.attention_mask",
    shows="*.probs",
    models=GEMMA_2_AND_3,
)
def ring_positions(
    queries: range, keys: np.ndarray, window: int | None, *, original: Mask, lengths: Sequence[int]
) -> np.ndarray:
    """Once the ring buffer of a local layer has wrapped, the mask uses slot numbers as key positions.

    Compare slots in every pass but the first: queries [T], keys [S] -> bool [T, S].
    """
    mask = original(queries, keys, window)
    if not window:
        return mask
    in_first_pass = np.arange(sum(lengths)) < lengths[0]  # [T]
    up_to_its_slot = np.asarray(keys) % window <= np.asarray(queries)[:, None] % window
    return mask & (up_to_its_slot | in_first_pass[:, None])

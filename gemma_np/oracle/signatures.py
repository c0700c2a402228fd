"""Infer values directly from a dump: the query scale, the window, the key-value head of each query head, the angles of
RoPE. This also finds wrong values that no mistake of the catalogue has, such as another base."""

from collections.abc import Iterator

import numpy as np

from gemma_np.oracle.noise import Records
from gemma_np.oracle.trace import Reference

_KEYS = ("q", "k", "q_norm", "q_rope", "k_rope", "scores", "probs")

_TOLERANCE = 0.02  # relative; coarse enough for bfloat16


def signatures(reference: Reference, theirs: Records) -> list[str]:
    """Return a line for each value in a layer's attention that differs from the reference, as far as records show."""
    lines = []
    for layer in range(reference.config.num_hidden_layers):
        name = f"layers.{layer}.self_attn"
        records = {key: np.asarray(theirs[f"{name}.{key}"], np.float64) for key in _KEYS if f"{name}.{key}" in theirs}
        lines += [f"{name}: {line}" for line in _of_layer(reference, layer, records)]
    return lines


def _of_layer(reference: Reference, layer: int, records: Records) -> Iterator[str]:
    if {"q_rope", "k_rope", "scores"} <= records.keys():
        yield from _heads_and_scale(reference, layer, records)
    if "probs" in records:
        yield from _window(reference, layer, records["probs"])
    before = records.get("q_norm", records.get("q"))
    if before is not None and "q_rope" in records:
        yield from _angles(reference, layer, before, records["q_rope"])


def _heads_and_scale(reference: Reference, layer: int, records: Records) -> Iterator[str]:
    """Find the key-value head that each query head reads, and the factor between q . k and the scores."""
    visible = ~reference.slices[f"layers.{layer}.self_attn.scores"].masked  # type: ignore[operator]
    scores = records["scores"][:, visible]  # [H, visible]
    if not (np.isfinite(scores).all() and np.abs(scores).max() > 0):
        return
    products = np.einsum("Hth,Ksh->HKts", records["q_rope"], records["k_rope"])[:, :, visible]  # [H, K, visible]
    factors = np.einsum("HKv,Hv->HK", products, scores) / np.maximum(np.square(products).sum(axis=-1), 1e-300)
    residuals = np.linalg.norm(scores[:, None] - factors[..., None] * products, axis=-1)  # [H, K]
    if visible.sum() < 3 or (residuals.min(axis=1) > _TOLERANCE * np.linalg.norm(scores, axis=-1)).any():
        return  # not proportional: a cap or a bias, say; too few visible keys show nothing
    kv_heads = residuals.argmin(axis=1)
    heads = np.arange(len(kv_heads))
    expected = heads // (len(heads) // products.shape[1])
    if (kv_heads != expected).any():
        yield f"query heads read key-value heads {kv_heads.tolist()}, expected {expected.tolist()}"
    factor = float(np.median(factors[heads, kv_heads]))
    if factor <= 0:
        return
    scalar, right = 1 / factor**2, reference.config.query_pre_attn_scalar
    if abs(scalar / right - 1) > 2 * _TOLERANCE:
        yield f"scores are q . k / sqrt({scalar:.4g}), expected query_pre_attn_scalar={right:g}"


def _window(reference: Reference, layer: int, probs: np.ndarray) -> Iterator[str]:
    """Compare the number of keys with a probability above zero with the window."""
    visible = int((probs > 0).sum(axis=-1).max())
    tokens, window = probs.shape[-2], reference.config.window(layer)
    expected = min(tokens, window or tokens)
    if visible != expected and tokens > 1:
        kind = f"a window of {window}" if window else "a global layer"
        yield f"a query sees up to {visible} keys of {tokens}, expected {expected} from {kind}"


def _angles(reference: Reference, layer: int, before: np.ndarray, after: np.ndarray) -> Iterator[str]:
    """Measure the angles by which the second token's pairs are rotated, and the base that gives them."""
    if before.shape[-2] < 2:
        return
    half = before.shape[-1] // 2
    base, divisor = reference.config.rope(layer)
    angles = _turns(before[:, 1, :half] + 1j * before[:, 1, half:], after[:, 1, :half] + 1j * after[:, 1, half:])
    if angles is None:
        neighbours = [x[:, 1, 0::2] + 1j * x[:, 1, 1::2] for x in (before, after)]
        if _turns(*neighbours) is not None:
            yield f"RoPE rotates channels 2i and 2i + 1 as a pair, expected i and i + {half}"
        return
    expected = base ** -(np.arange(half) / half) / divisor  # [h/2], radians
    known = ~np.isnan(angles)
    if (np.abs(angles - expected)[known] > _TOLERANCE).any():
        yield f"the second token's pairs are rotated by {_few(angles[known])} radians, expected {_few(expected[known])}"
        if half > 1 and known[:2].all() and angles[1] > 0 and abs(angles[0] - 1) < _TOLERANCE:
            yield f"the RoPE base is about {angles[1] ** -float(half):.4g}, expected {base:g}"


def _turns(before: np.ndarray, after: np.ndarray) -> np.ndarray | None:
    """Return the angle by which each pair, a complex number, is rotated; NaN for a pair too short to show it. Return
    None unless all heads are rotated alike and keep their length.

    before and after [H, h/2] -> [h/2], radians
    """
    power = np.square(np.abs(before)).sum(axis=0)
    factor = (before.conj() * after).sum(axis=0) / np.maximum(power, 1e-300)
    residual = np.linalg.norm(after - factor * before) / max(float(np.linalg.norm(after)), 1e-300)
    long_enough = power > 1e-2 * power.max()
    if residual > _TOLERANCE or (np.abs(np.abs(factor) - 1)[long_enough] > _TOLERANCE).any():
        return None
    return np.where(long_enough, np.angle(factor), np.nan)


def _few(angles: np.ndarray) -> str:
    return ", ".join(f"{angle:.3g}" for angle in angles[:3]) + (", ..." if len(angles) > 3 else "")

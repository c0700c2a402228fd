"""What a dump's numbers say by themselves, without trying any mistake: the query scale, the window, which key-value
head each query head reads, the angles of RoPE. They also name values that no catalogue has, such as another base."""

from collections.abc import Iterator

import numpy as np

from gemma_np.oracle.noise import Records
from gemma_np.oracle.trace import Reference

_SAME = 0.02  # relative; coarse enough for bfloat16


def signatures(reference: Reference, theirs: Records) -> list[str]:
    """A line for each layer and thing that is not as the reference has it, where the records tell."""
    lines = []
    for layer in range(reference.config.num_hidden_layers):
        name = f"layers.{layer}.self_attn"
        part = {key: np.asarray(theirs[f"{name}.{key}"], np.float64) for key in _KEYS if f"{name}.{key}" in theirs}
        for line in _of_layer(reference, layer, part):
            lines.append(f"{name}: {line}")
    return lines


_KEYS = ("q", "k", "q_norm", "q_rope", "k_rope", "scores", "probs")


def _of_layer(reference: Reference, layer: int, part: Records) -> Iterator[str]:
    if {"q_rope", "k_rope", "scores"} <= part.keys():
        yield from _heads_and_scale(reference, layer, part)
    if "probs" in part:
        yield from _window(reference, layer, part["probs"])
    before = part.get("q_norm", part.get("q"))
    if before is not None and "q_rope" in part:
        yield from _angles(reference, layer, before, part["q_rope"])


def _heads_and_scale(reference: Reference, layer: int, part: Records) -> Iterator[str]:
    """Of which key-value head each head's scores are a multiple, and of which."""
    seen = ~reference.slices[f"layers.{layer}.self_attn.scores"].masked  # type: ignore[operator]
    if not (np.isfinite(part["scores"][:, seen]).all() and np.abs(part["scores"][:, seen]).max() > 0):
        return
    raw = np.einsum("Hth,Ksh->HKts", part["q_rope"], part["k_rope"])[:, :, seen]  # [H, K, visible]
    scores = part["scores"][:, seen]  # [H, visible]
    factors = np.einsum("HKv,Hv->HK", raw, scores) / np.maximum(np.square(raw).sum(axis=-1), 1e-300)
    left = np.linalg.norm(scores[:, None] - factors[..., None] * raw, axis=-1)
    if seen.sum() < 3 or (left.min(axis=1) > _SAME * np.linalg.norm(scores, axis=-1)).any():
        return  # no multiples: one visible key says nothing, and a cap or a bias is something else
    read = left.argmin(axis=1)
    heads, groups = len(read), len(read) // raw.shape[1]
    expected = np.arange(heads) // groups
    if (read != expected).any():
        yield f"query heads read key-value heads {read.tolist()}, expected {expected.tolist()}"
    factor = float(np.median(factors[np.arange(heads), read]))
    if factor <= 0:
        return
    scalar, right = 1 / factor**2, reference.config.query_pre_attn_scalar
    if abs(scalar / right - 1) > 2 * _SAME:
        yield f"scores are q . k / sqrt({scalar:.4g}), expected query_pre_attn_scalar={right:g}"


def _window(reference: Reference, layer: int, probs: np.ndarray) -> Iterator[str]:
    """How many keys the rows of probabilities give more than zero."""
    found = int((probs > 0).sum(axis=-1).max())
    tokens, window = probs.shape[-2], reference.config.window(layer)
    expected = min(tokens, window or tokens)
    if found != expected and tokens > 1:
        what = f"a window of {window}" if window else "a global layer"
        yield f"a query sees up to {found} keys of {tokens}, expected {expected} from {what}"


def _angles(reference: Reference, layer: int, before: np.ndarray, after: np.ndarray) -> Iterator[str]:
    """By which angle the second token's pairs are turned, and which base that is."""
    if before.shape[-2] < 2:
        return
    half = before.shape[-1] // 2
    base, divisor = reference.config.rope(layer)
    turned = _turns(before[:, 1, :half] + 1j * before[:, 1, half:], after[:, 1, :half] + 1j * after[:, 1, half:])
    if turned is None:
        neighbours = [x[:, 1, 0::2] + 1j * x[:, 1, 1::2] for x in (before, after)]
        if _turns(*neighbours) is not None:
            yield f"RoPE turns channels 2i and 2i + 1 as a pair, expected i and i + {half}"
        return
    expected = base ** -(np.arange(half) / half) / divisor  # [h/2], radians
    told = ~np.isnan(turned)
    if (np.abs(turned - expected)[told] > _SAME).any():
        yield f"the second token's pairs are turned by {_few(turned[told])} radians, expected {_few(expected[told])}"
        if half > 1 and told[:2].all() and turned[1] > 0 and abs(turned[0] - 1) < _SAME:
            yield f"its RoPE base is about {turned[1] ** -float(half):.4g}, expected {base:g}"


def _turns(before: np.ndarray, after: np.ndarray) -> np.ndarray | None:
    """The angle that each pair, a complex number, is turned by, NaN for pairs too short to tell; None unless all heads
    are turned alike, and keep their length.

    before and after [H, h/2] -> [h/2]
    """
    power = np.square(np.abs(before)).sum(axis=0)
    factor = (before.conj() * after).sum(axis=0) / np.maximum(power, 1e-300)
    left = np.linalg.norm(after - factor * before) / max(float(np.linalg.norm(after)), 1e-300)
    told = power > 1e-2 * power.max()
    if left > _SAME or (np.abs(np.abs(factor) - 1)[told] > _SAME).any():
        return None
    return np.where(told, np.angle(factor), np.nan)


def _few(angles: np.ndarray) -> str:
    return ", ".join(f"{angle:.3g}" for angle in angles[:3]) + (", ..." if len(angles) > 3 else "")

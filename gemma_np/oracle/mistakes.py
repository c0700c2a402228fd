"""The catalogue of mistakes that people really made when they wrote Gemma anew: each a small patch of this code.

What is patched is a function of the model, or a property of the config, by its place below `gemma_np`; nothing in the
model knows of it. Each entry says what was done instead of what is right, in which records it shows, which function has
the right line, and how to mend it.
"""

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from gemma_np.config import GLOBAL, LOCAL, GemmaConfig
from gemma_np.model.attention import attention
from gemma_np.model.block import block
from gemma_np.model.embedding import embed, unembed
from gemma_np.model.feed_forward import feed_forward, gelu
from gemma_np.model.rms_norm import rms_norm
from gemma_np.model.rope import rope, rotation
from gemma_np.model.soft_cap import soft_cap
from gemma_np.model.visibility import masked_softmax, visible
from gemma_np.scope import Scope, Tape, within
from gemma_np.storage import linear

Patches = dict[str, Any]
"""What is replaced, by its place below `gemma_np`, and by what."""


class Mistake(NamedTuple):
    """One row of the catalogue."""

    id: str
    instead: str  # what was done
    fix: str  # what to do
    right: Callable[..., Any]  # the function that has it right
    shows: tuple[str, ...]  # records, as patterns, that are wrong given right inputs
    patches: Callable[[GemmaConfig, Sequence[int]], Patches]  # for a config, and passes of these lengths
    models: tuple[str, ...] = ("gemma", "gemma2", "gemma3_text")


@contextmanager
def planted(mistakes: Sequence[Mistake], config: GemmaConfig, lengths: Sequence[int]) -> Iterator[None]:
    """Run the reference with these mistakes in it."""
    with ExitStack() as stack:
        for mistake in mistakes:
            for place, faulty in mistake.patches(config, lengths).items():
                stack.enter_context(_replaced(place, faulty))
        yield


@contextmanager
def _replaced(place: str, value: Any) -> Iterator[None]:
    """The attribute at a place such as `model.block.rms_norm` or `config.GemmaConfig.window`, replaced for a while."""
    path, name = f"gemma_np.{place}".rsplit(".", 1)
    owner = getattr(importlib.import_module(path.rsplit(".", 1)[0]), path.rsplit(".", 1)[1], None)
    owner = owner if isinstance(owner, type) else importlib.import_module(path)
    before = vars(owner).get(name)  # a field without a default is no attribute of its class
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _always(**patches: Any) -> Callable[[GemmaConfig, Sequence[int]], Patches]:
    """The same patches whatever the config; `__` stands for a dot."""
    return lambda config, lengths: {place.replace("__", "."): value for place, value in patches.items()}


def _every_norm(faulty: Callable[..., np.ndarray]) -> Callable[[GemmaConfig, Sequence[int]], Patches]:
    modules = ("attention", "block", "transformer")
    return lambda config, lengths: {f"model.{module}.rms_norm": faulty for module in modules}


def _bfloat16(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(ml_dtypes.bfloat16).astype(x.dtype)


def _norm_cast_early(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return _bfloat16(rms_norm(x, np.zeros_like(weight), eps)) * (1 + weight)


def _rotation_in_bfloat16(*arguments: Any) -> tuple[np.ndarray, ...]:
    return tuple(map(_bfloat16, rotation(*arguments)))


def _rope_interleaved(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    turned = np.empty_like(x)
    turned[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
    turned[..., 1::2] = x[..., 1::2] * cos + x[..., 0::2] * sin
    return turned


def _rotation_that_stalls(config: GemmaConfig, lengths: Sequence[int]) -> Patches:
    """Each pass counts from zero again."""

    def stalled(positions: range, *rest: Any) -> tuple[np.ndarray, np.ndarray]:
        angles = [rotation(range(length), *rest) for length in lengths]
        return np.concatenate([cos for cos, _ in angles]), np.concatenate([sin for _, sin in angles])

    return {"model.attention.rotation": stalled}


def _per_group_tiled(heads: np.ndarray, shared: np.ndarray) -> np.ndarray:
    tiled = np.arange(heads.shape[-3]) % shared.shape[-3]
    return heads @ shared[..., tiled, :, :]


def _softmax_after_capping_the_mask(config: GemmaConfig, lengths: Sequence[int]) -> Patches:
    cap = config.attn_logit_softcapping or math.inf

    def faulty(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return masked_softmax(np.where(mask, scores, -cap), np.ones_like(mask))

    return {"model.attention.masked_softmax": faulty}


def _mask_by_row(config: GemmaConfig, lengths: Sequence[int]) -> Patches:
    """A token's row within its pass is taken for its position."""
    rows = np.concatenate([np.arange(length) for length in lengths])
    return {"model.attention.visible": lambda queries, keys, window: visible(rows, keys, window)}


def _mask_by_slot(config: GemmaConfig, lengths: Sequence[int]) -> Patches:
    """In the decoding passes, the slot of a ring is taken for the position of the key in it."""
    one_by_one = np.concatenate([np.full(length, number > 0) for number, length in enumerate(lengths)])

    def faulty(queries: range, keys: range, window: int | None) -> np.ndarray:
        mask = visible(queries, keys, window)
        if not window:
            return mask
        query = np.asarray(queries)[:, None]
        before_its_slot = np.asarray(keys) % window <= query % window
        return mask & (before_its_slot | ~one_by_one[:, None])

    return {"model.attention.visible": faulty}


def _visible_one_too_many(queries: range, keys: range, window: int | None) -> np.ndarray:
    return visible(queries, keys, window and window + 1)


def _block_without_post_norms(
    x: np.ndarray, weights: Scope, config: GemmaConfig, layer: int, cache: Any, tape: Tape
) -> np.ndarray:
    y = tape("input_layernorm", rms_norm(x, weights["input_layernorm.weight"], config.rms_norm_eps))
    y = attention(y, weights / "self_attn", config, layer, cache, within(tape, "self_attn"))
    x = tape("resid_mid", x + tape("post_attention_layernorm", y))
    y = rms_norm(x, weights["pre_feedforward_layernorm.weight"], config.rms_norm_eps)
    y = feed_forward(tape("pre_feedforward_layernorm", y), weights / "mlp", within(tape, "mlp"))
    return tape("resid_post", x + tape("post_feedforward_layernorm", y))


def _block_with_post_norm_behind_the_sum(
    x: np.ndarray, weights: Scope, config: GemmaConfig, layer: int, cache: Any, tape: Tape
) -> np.ndarray:
    y = tape("input_layernorm", rms_norm(x, weights["input_layernorm.weight"], config.rms_norm_eps))
    y = attention(y, weights / "self_attn", config, layer, cache, within(tape, "self_attn"))
    x = rms_norm(x + y, weights["post_attention_layernorm.weight"], config.rms_norm_eps)
    x = tape("resid_mid", tape("post_attention_layernorm", x))
    y = rms_norm(x, weights["pre_feedforward_layernorm.weight"], config.rms_norm_eps)
    y = feed_forward(tape("pre_feedforward_layernorm", y), weights / "mlp", within(tape, "mlp"))
    y = rms_norm(y, weights["post_feedforward_layernorm.weight"], config.rms_norm_eps)
    return tape("resid_post", x + tape("post_feedforward_layernorm", y))


def _block_with_crossed_norms(x: np.ndarray, weights: Scope, *rest: Any) -> np.ndarray:
    crossed = dict(weights)
    crossed["post_attention_layernorm.weight"] = weights["pre_feedforward_layernorm.weight"]
    crossed["pre_feedforward_layernorm.weight"] = weights["post_attention_layernorm.weight"]
    return block(x, Scope(crossed), *rest)


def _gelu_exact(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))) / 2


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _feed_forward_with_gelu_on_up(x: np.ndarray, weights: Scope, tape: Tape) -> np.ndarray:
    gate = tape("gate", linear(x, weights["gate_proj.weight"]))
    up = tape("up", linear(x, weights["up_proj.weight"]))
    return tape("down", linear(tape("hidden", gate * gelu(up)), weights["down_proj.weight"]))


def _window_by_parity(config: GemmaConfig, layer: int) -> int | None:
    return config.sliding_window if config.layer_types[layer] == GLOBAL else None


def _rope_scaled_everywhere(config: GemmaConfig, layer: int) -> tuple[float, float]:
    base = config.rope_local_base_freq if config.layer_types[layer] == LOCAL else None
    return base or config.rope_theta, config.rope_scaling_factor


EMBEDDING = ("embedding",)
NORMS = ("*norm",)
ROPE = ("*.q_rope", "*.k_rope")
SCORES = ("*.scores",)
CAPPED = ("*.scores_capped",)
PROBS = ("*.probs",)
HIDDEN = ("*.hidden",)
LOGITS = ("logits",)

CATALOGUE = (
    Mistake(
        "embed-scale-absent",
        "the embedding is not scaled",
        "multiply it by sqrt(hidden_size)",
        *(embed, EMBEDDING, _always(model__transformer__embed=lambda ids, embedding: embedding[ids])),
    ),
    Mistake(
        "embed-scale-twice",
        "the embedding is scaled twice",
        "multiply it by sqrt(hidden_size) once",
        *(embed, EMBEDDING),
        _always(model__transformer__embed=lambda ids, E: embed(ids, E) * math.sqrt(E.shape[1])),
    ),
    Mistake(
        "embed-scale-rounding",
        "the embedding's scale is rounded to bfloat16 in a computation of more digits",
        "round sqrt(hidden_size) to the dtype of the weights, no coarser",
        *(embed, EMBEDDING),
        _always(model__transformer__embed=lambda ids, E: E[ids] * float(_bfloat16(math.sqrt(E.shape[1])))),
    ),
    Mistake(
        "norm-no-plus1",
        "the norm multiplies by w",
        "multiply by 1 + w",
        *(rms_norm, NORMS, _every_norm(lambda x, weight, eps: rms_norm(x, weight - 1, eps))),
    ),
    Mistake(
        "norm-plus1-twice",
        "the norm adds 1 to a weight that has it already, as those of GGUF files have",
        "subtract 1 when loading such a file, or do not add it",
        *(rms_norm, NORMS, _every_norm(lambda x, weight, eps: rms_norm(x, weight + 1, eps))),
    ),
    Mistake(
        "norm-cast-early",
        "x / rms(x) is rounded to bfloat16 before it is multiplied by 1 + w",
        "multiply in float32, and round the product",
        *(rms_norm, NORMS, _every_norm(_norm_cast_early)),
    ),
    Mistake(
        "rope-bf16",
        "cosine and sine of the rotation are bfloat16",
        "compute the angles in float32 or float64, and keep cosine and sine in the computation's dtype",
        *(rotation, ROPE, _always(model__attention__rotation=_rotation_in_bfloat16)),
    ),
    Mistake(
        "rope-interleaved",
        "channels 2i and 2i + 1 are turned as a pair",
        "pair channel i with channel i + head_dim / 2, or permute the weights to match",
        *(rope, ROPE, _always(model__attention__rope=_rope_interleaved)),
    ),
    Mistake(
        "rope-theta-one",
        "local and global layers share the global base",
        "use rope_local_base_freq (10,000) on local layers, rope_theta (1,000,000) on global ones",
        *(GemmaConfig.rope, ROPE),
        _always(config__GemmaConfig__rope_local_base_freq=property(lambda config: config.rope_theta)),
        models=("gemma3_text",),
    ),
    Mistake(
        "rope-scale-missing",
        "the positions of the global layers are not divided by the scaling factor",
        "divide them by 8 (4B and larger)",
        *(GemmaConfig.rope, ROPE),
        _always(config__GemmaConfig__rope_scaling_factor=property(lambda config: 1.0)),
        models=("gemma3_text",),
    ),
    Mistake(
        "rope-scale-everywhere",
        "the positions of local layers are divided by the scaling factor, too",
        "divide them on global layers alone",
        *(GemmaConfig.rope, ROPE, _always(config__GemmaConfig__rope=_rope_scaled_everywhere)),
        models=("gemma3_text",),
    ),
    Mistake(
        "qk-norm-missing",
        "queries and keys are not normalised",
        "apply q_norm and k_norm, head by head, before the rotation",
        *(attention, ("*.q_norm", "*.k_norm"), _always(model__attention__rms_norm=lambda x, weight, eps: x)),
        models=("gemma3_text",),
    ),
    Mistake(
        "qscale-hidden-over-heads",
        "scores are divided by sqrt(hidden_size / num_attention_heads)",
        "divide them by sqrt(query_pre_attn_scalar)",
        *(attention, SCORES),
        _always(
            config__GemmaConfig__query_pre_attn_scalar=property(
                lambda config: config.hidden_size / config.num_attention_heads
            )
        ),
    ),
    Mistake(
        "qscale-head-dim",
        "scores are divided by sqrt(head_dim)",
        "divide them by sqrt(query_pre_attn_scalar), 144 in the 27B",
        *(attention, SCORES),
        _always(config__GemmaConfig__query_pre_attn_scalar=property(lambda config: config.head_dim)),
    ),
    Mistake(
        "attncap-missing",
        "scores are not capped (fused attention kernels leave it out)",
        "apply 50 * tanh(scores / 50) before the mask",
        *(attention, (*CAPPED, *PROBS), _always(model__attention__soft_cap=lambda x, cap: x)),
        models=("gemma2",),
    ),
    Mistake(
        "attncap-after-mask",
        "scores are capped after the mask, so that hidden keys have -50 for -inf",
        "cap first, then mask",
        *(attention, PROBS, _softmax_after_capping_the_mask),
        models=("gemma2",),
    ),
    Mistake(
        "cap-formula",
        "the cap is x * tanh(x / cap)",
        "cap * tanh(x / cap)",
        *(soft_cap, (*CAPPED, "logits_capped")),
        lambda config, lengths: {
            f"model.{module}.soft_cap": lambda x, cap: x * np.tanh(x / cap) for module in ("attention", "transformer")
        },
        models=("gemma2",),
    ),
    Mistake(
        "window-parity",
        "the layers that should be local are global, and the other way round",
        "make the even layers local, from layer 0 on",
        *(GemmaConfig.window, PROBS, _always(config__GemmaConfig__window=_window_by_parity)),
        models=("gemma2",),
    ),
    Mistake(
        "window-off-by-one",
        "a local layer sees window + 1 keys",
        "let a query see keys fewer than `window` positions back: itself and window - 1 others",
        *(visible, PROBS, _always(model__attention__visible=_visible_one_too_many)),
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        "window-ignored",
        "local layers see everything",
        "let them see the last `window` keys",
        *(GemmaConfig.window, PROBS, _always(config__GemmaConfig__window=lambda config, layer: None)),
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        "window-all-layers",
        "global layers have the window, too",
        "let them see everything up to the query",
        *(GemmaConfig.window, PROBS, _always(config__GemmaConfig__window=lambda config, layer: config.sliding_window)),
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        "gqa-tile",
        "key-value heads are tiled: query head i reads key-value head i % K",
        "repeat them: query head i reads key-value head i // G",
        *(attention, (*SCORES, "*.mixed"), _always(model__attention__per_group=_per_group_tiled)),
    ),
    Mistake(
        "decode-mask-index",
        "in decoding, the mask takes a token's row in its pass for its position",
        "count positions from the length of the cache",
        *(visible, PROBS, _mask_by_row),
    ),
    Mistake(
        "ring-positions",
        "once the ring of a local layer has wrapped, the mask takes a slot's number for its key's position",
        "work out the position that each slot holds",
        *(visible, PROBS, _mask_by_slot),
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        "decode-positions",
        "in decoding, positions start from zero again",
        "rotate by the position in the whole text, which the cache's length tells",
        *(rotation, ROPE, _rotation_that_stalls),
    ),
    Mistake(
        "postnorm-missing",
        "what attention and feed-forward return is not normalised",
        "apply post_attention_layernorm and post_feedforward_layernorm before the residual is added",
        *(block, ("*.post_*_layernorm",), _always(model__transformer__block=_block_without_post_norms)),
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        "postnorm-misplaced",
        "the post-attention norm is applied to the sum with the residual",
        "normalise what attention returns, then add it",
        *(block, ("*.post_attention_layernorm", "*.resid_mid")),
        _always(model__transformer__block=_block_with_post_norm_behind_the_sum),
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        "norm-names-crossed",
        "the weights of post_attention_layernorm and pre_feedforward_layernorm are exchanged",
        "post_attention_layernorm belongs to what attention returns, pre_feedforward_layernorm before the feed-forward",
        *(block, ("*.post_attention_layernorm", "*.pre_feedforward_layernorm")),
        _always(model__transformer__block=_block_with_crossed_norms),
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        "gelu-exact",
        "GELU is computed with erf",
        "use the tanh form",
        *(gelu, HIDDEN, _always(model__feed_forward__gelu=_gelu_exact)),
    ),
    Mistake(
        "silu",
        "the gate is SiLU (SwiGLU)",
        "use GELU in its tanh form",
        *(gelu, HIDDEN, _always(model__feed_forward__gelu=_silu)),
    ),
    Mistake(
        "gate-up-swapped",
        "GELU is applied to up_proj's result",
        "apply it to gate_proj's: gelu(gate) * up",
        *(feed_forward, HIDDEN, _always(model__block__feed_forward=_feed_forward_with_gelu_on_up)),
    ),
    Mistake(
        "finalcap-missing",
        "the logits are not capped; greedy text is the same, probabilities are not",
        "apply 30 * tanh(logits / 30)",
        *(soft_cap, ("logits_capped",), _always(model__transformer__soft_cap=lambda x, cap: x)),
        models=("gemma2",),
    ),
    Mistake(
        "finalcap-50",
        "the logits are capped with the cap of attention",
        "cap them with final_logit_softcapping, 30",
        *(soft_cap, ("logits_capped",)),
        _always(config__GemmaConfig__final_logit_softcapping=property(lambda config: config.attn_logit_softcapping)),
        models=("gemma2",),
    ),
    Mistake(
        "head-transposed",
        "the head reads the embedding's numbers in the order of the transposed matrix",
        "logits = x @ embedding.T, with the embedding stored [V, D]",
        *(unembed, LOGITS),
        _always(model__transformer__unembed=lambda x, embedding: x @ embedding.reshape(embedding.shape[::-1])),
    ),
)
"""In the order of the forward pass. A head of its own weights ("untied") cannot be tried, since they are not known: the
isolated error of `logits` names it."""

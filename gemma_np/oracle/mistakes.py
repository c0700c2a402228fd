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

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.model.attention import attention
from gemma_np.model.block import block
from gemma_np.model.embedding import embed, unembed
from gemma_np.model.feed_forward import feed_forward, gelu
from gemma_np.model.rms_norm import rms_norm
from gemma_np.model.rope import rope, rotation
from gemma_np.model.soft_cap import soft_cap
from gemma_np.model.visibility import visible
from gemma_np.oracle import faults
from gemma_np.oracle.faults import Patches


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
            for place, make in mistake.patches(config, lengths).items():
                stack.enter_context(_replaced(place, make))
        yield


@contextmanager
def _replaced(place: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """The attribute at a place such as `model.block.rms_norm` or `config.GemmaConfig.window`, replaced for a while."""
    path, name = f"gemma_np.{place}".rsplit(".", 1)
    owner = GemmaConfig if path.endswith("GemmaConfig") else importlib.import_module(path)
    before = vars(owner).get(name)  # a field without a default is no attribute of its class
    setattr(owner, name, make(before))
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _at(*modules: str, name: str, make: Callable[[Any], Any]) -> Callable[[GemmaConfig, Sequence[int]], Patches]:
    """The same patch of a function in each of these modules of the model, whatever the config."""
    return lambda config, lengths: {f"model.{module}.{name}": make for module in modules}


def _config(name: str, value: Callable[..., Any]) -> Callable[[GemmaConfig, Sequence[int]], Patches]:
    """Another value of a config's field, worked out from the config."""
    return lambda config, lengths: {f"config.GemmaConfig.{name}": lambda current: property(value)}


def _method(name: str, method: Callable[..., Any]) -> Callable[[GemmaConfig, Sequence[int]], Patches]:
    """Another method of the config."""
    return lambda config, lengths: {f"config.GemmaConfig.{name}": lambda current: method}


def _every_norm(make: Callable[[Any], Any]) -> Callable[[GemmaConfig, Sequence[int]], Patches]:
    return _at("attention", "block", "transformer", name="rms_norm", make=make)


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
        *(
            embed,
            EMBEDDING,
            _at("transformer", name="embed", make=lambda embed: lambda ids, E: embed(ids, E) / math.sqrt(E.shape[1])),
        ),
    ),
    Mistake(
        "embed-scale-twice",
        "the embedding is scaled twice",
        "multiply it by sqrt(hidden_size) once",
        *(embed, EMBEDDING),
        _at("transformer", name="embed", make=lambda embed: lambda ids, E: embed(ids, E) * math.sqrt(E.shape[1])),
    ),
    Mistake(
        "embed-scale-rounding",
        "the embedding's scale is rounded to bfloat16 in a computation of more digits",
        "round sqrt(hidden_size) to the dtype of the weights, no coarser",
        *(embed, EMBEDDING),
        _at("transformer", name="embed", make=faults.embed_scale_rounded),
    ),
    Mistake(
        "norm-no-plus1",
        "the norm multiplies by w",
        "multiply by 1 + w",
        *(rms_norm, NORMS, _every_norm(lambda norm: lambda x, weight, eps: norm(x, weight - 1, eps))),
    ),
    Mistake(
        "norm-plus1-twice",
        "the norm adds 1 to a weight that has it already, as those of GGUF files have",
        "subtract 1 when loading such a file, or do not add it",
        *(rms_norm, NORMS, _every_norm(lambda norm: lambda x, weight, eps: norm(x, weight + 1, eps))),
    ),
    Mistake(
        "norm-cast-early",
        "x / rms(x) is rounded to bfloat16 before it is multiplied by 1 + w",
        "multiply in float32, and round the product",
        *(rms_norm, NORMS, _every_norm(lambda norm: faults.norm_cast_early)),
    ),
    Mistake(
        "rope-bf16",
        "cosine and sine of the rotation are bfloat16",
        "compute the angles in float32 or float64, and keep cosine and sine in the computation's dtype",
        *(
            rotation,
            ROPE,
            _at("attention", name="rotation", make=lambda turn: lambda *rest: tuple(map(faults.bfloat16, turn(*rest)))),
        ),
    ),
    Mistake(
        "rope-interleaved",
        "channels 2i and 2i + 1 are turned as a pair",
        "pair channel i with channel i + head_dim / 2, or permute the weights to match",
        *(rope, ROPE, _at("attention", name="rope", make=lambda rope: faults.rope_interleaved)),
    ),
    Mistake(
        "rope-theta-one",
        "local and global layers share the global base",
        "use rope_local_base_freq (10,000) on local layers, rope_theta (1,000,000) on global ones",
        *(GemmaConfig.rope, ROPE),
        _config("rope_local_base_freq", lambda config: config.rope_theta),
        models=("gemma3_text",),
    ),
    Mistake(
        "rope-scale-missing",
        "the positions of the global layers are not divided by the scaling factor",
        "divide them by 8 (4B and larger)",
        *(GemmaConfig.rope, ROPE),
        _config("rope_scaling_factor", lambda config: 1.0),
        models=("gemma3_text",),
    ),
    Mistake(
        "rope-scale-everywhere",
        "the positions of local layers are divided by the scaling factor, too",
        "divide them on global layers alone",
        *(GemmaConfig.rope, ROPE, _method("rope", faults.rope_scaled_everywhere)),
        models=("gemma3_text",),
    ),
    Mistake(
        "qk-norm-missing",
        "queries and keys are not normalised",
        "apply q_norm and k_norm, head by head, before the rotation",
        *(
            attention,
            ("*.q_norm", "*.k_norm"),
            _at("attention", name="rms_norm", make=lambda norm: lambda x, weight, eps: x),
        ),
        models=("gemma3_text",),
    ),
    Mistake(
        "qscale-hidden-over-heads",
        "scores are divided by sqrt(hidden_size / num_attention_heads)",
        "divide them by sqrt(query_pre_attn_scalar)",
        *(attention, SCORES),
        _config("query_pre_attn_scalar", lambda config: config.hidden_size / config.num_attention_heads),
    ),
    Mistake(
        "qscale-head-dim",
        "scores are divided by sqrt(head_dim)",
        "divide them by sqrt(query_pre_attn_scalar), 144 in the 27B",
        *(attention, SCORES),
        _config("query_pre_attn_scalar", lambda config: config.head_dim),
    ),
    Mistake(
        "attncap-missing",
        "scores are not capped (fused attention kernels leave it out)",
        "apply 50 * tanh(scores / 50) before the mask",
        *(attention, (*CAPPED, *PROBS), _at("attention", name="soft_cap", make=lambda soft_cap: lambda x, cap: x)),
        models=("gemma2",),
    ),
    Mistake(
        "attncap-after-mask",
        "scores are capped after the mask, so that hidden keys have -50 for -inf",
        "cap first, then mask",
        *(attention, PROBS, faults.softmax_after_capping_the_mask),
        models=("gemma2",),
    ),
    Mistake(
        "cap-formula",
        "the cap is x * tanh(x / cap)",
        "cap * tanh(x / cap)",
        *(soft_cap, (*CAPPED, "logits_capped")),
        _at("attention", "transformer", name="soft_cap", make=lambda soft_cap: lambda x, cap: x * np.tanh(x / cap)),
        models=("gemma2",),
    ),
    Mistake(
        "window-parity",
        "the layers that should be local are global, and the other way round",
        "make the even layers local, from layer 0 on",
        *(GemmaConfig.window, PROBS, _method("window", faults.window_by_parity)),
        models=("gemma2",),
    ),
    Mistake(
        "window-off-by-one",
        "a local layer sees window + 1 keys",
        "let a query see keys fewer than `window` positions back: itself and window - 1 others",
        *(
            visible,
            PROBS,
            _at("attention", name="visible", make=lambda seen: lambda q, k, window: seen(q, k, window and window + 1)),
        ),
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        "window-ignored",
        "local layers see everything",
        "let them see the last `window` keys",
        *(GemmaConfig.window, PROBS, _method("window", lambda config, layer: None)),
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        "window-all-layers",
        "global layers have the window, too",
        "let them see everything up to the query",
        *(GemmaConfig.window, PROBS, _method("window", lambda config, layer: config.sliding_window)),
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        "gqa-tile",
        "key-value heads are tiled: query head i reads key-value head i % K",
        "repeat them: query head i reads key-value head i // G",
        *(
            attention,
            (*SCORES, "*.mixed"),
            _at("attention", name="per_group", make=lambda per_group: faults.per_group_tiled),
        ),
    ),
    Mistake(
        "decode-mask-index",
        "in decoding, the mask takes a token's row in its pass for its position",
        "count positions from the length of the cache",
        *(visible, PROBS, faults.mask_by_row),
    ),
    Mistake(
        "ring-positions",
        "once the ring of a local layer has wrapped, the mask takes a slot's number for its key's position",
        "work out the position that each slot holds",
        *(visible, PROBS, faults.mask_by_slot),
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        "decode-positions",
        "in decoding, positions start from zero again",
        "rotate by the position in the whole text, which the cache's length tells",
        *(rotation, ROPE, faults.rotation_that_stalls),
    ),
    Mistake(
        "postnorm-missing",
        "what attention and feed-forward return is not normalised",
        "apply post_attention_layernorm and post_feedforward_layernorm before the residual is added",
        *(
            block,
            ("*.post_*_layernorm",),
            _at("transformer", name="block", make=lambda right: faults.block_without_post_norms),
        ),
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        "postnorm-misplaced",
        "the post-attention norm is applied to the sum with the residual",
        "normalise what attention returns, then add it",
        *(block, ("*.post_attention_layernorm", "*.resid_mid")),
        _at("transformer", name="block", make=lambda right: faults.block_with_post_norm_behind_the_sum),
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        "norm-names-crossed",
        "the weights of post_attention_layernorm and pre_feedforward_layernorm are exchanged",
        "post_attention_layernorm belongs to what attention returns, pre_feedforward_layernorm before the feed-forward",
        *(block, ("*.post_attention_layernorm", "*.pre_feedforward_layernorm")),
        _at("transformer", name="block", make=faults.crossed_norms),
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        "gelu-exact",
        "GELU is computed with erf",
        "use the tanh form",
        *(gelu, HIDDEN, _at("feed_forward", name="gelu", make=lambda gelu: faults.gelu_exact)),
    ),
    Mistake(
        "silu",
        "the gate is SiLU (SwiGLU)",
        "use GELU in its tanh form",
        *(gelu, HIDDEN, _at("feed_forward", name="gelu", make=lambda gelu: faults.silu)),
    ),
    Mistake(
        "gate-up-swapped",
        "GELU is applied to up_proj's result",
        "apply it to gate_proj's: gelu(gate) * up",
        *(
            feed_forward,
            HIDDEN,
            _at("block", name="feed_forward", make=lambda right: faults.feed_forward_with_gelu_on_up),
        ),
    ),
    Mistake(
        "finalcap-missing",
        "the logits are not capped; greedy text is the same, probabilities are not",
        "apply 30 * tanh(logits / 30)",
        *(soft_cap, ("logits_capped",), _at("transformer", name="soft_cap", make=lambda soft_cap: lambda x, cap: x)),
        models=("gemma2",),
    ),
    Mistake(
        "finalcap-50",
        "the logits are capped with the cap of attention",
        "cap them with final_logit_softcapping, 30",
        *(soft_cap, ("logits_capped",)),
        _config("final_logit_softcapping", lambda config: config.attn_logit_softcapping),
        models=("gemma2",),
    ),
    Mistake(
        "head-transposed",
        "the head reads the embedding's numbers in the order of the transposed matrix",
        "logits = x @ embedding.T, with the embedding stored [V, D]",
        *(unembed, LOGITS),
        _at("transformer", name="unembed", make=lambda unembed: lambda x, E: x @ E.reshape(E.shape[::-1])),
    ),
)
"""In the order of the forward pass. A head of its own weights ("untied") cannot be tried, since they are not known: the
isolated error of `logits` names it."""

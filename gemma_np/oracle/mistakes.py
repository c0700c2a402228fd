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
from gemma_np.model.attention_mask import attention_mask
from gemma_np.model.block import block
from gemma_np.model.embedding import embed, unembed
from gemma_np.model.feed_forward import feed_forward, gelu
from gemma_np.model.rms_norm import rms_norm
from gemma_np.model.rope import rope, rope_cos_sin
from gemma_np.model.soft_cap import soft_cap
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
def inject_mistakes(mistakes: Sequence[Mistake], config: GemmaConfig, lengths: Sequence[int]) -> Iterator[None]:
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
        id="embed-scale-absent",
        instead="the embedding is not scaled",
        fix="multiply it by sqrt(hidden_size)",
        right=embed,
        shows=EMBEDDING,
        patches=_at(
            "transformer", name="embed", make=lambda embed: lambda ids, E: embed(ids, E) / math.sqrt(E.shape[1])
        ),
    ),
    Mistake(
        id="embed-scale-twice",
        instead="the embedding is scaled twice",
        fix="multiply it by sqrt(hidden_size) once",
        right=embed,
        shows=EMBEDDING,
        patches=_at(
            "transformer", name="embed", make=lambda embed: lambda ids, E: embed(ids, E) * math.sqrt(E.shape[1])
        ),
    ),
    Mistake(
        id="embed-scale-rounding",
        instead="the embedding's scale is rounded to bfloat16 in a computation of more digits",
        fix="round sqrt(hidden_size) to the dtype of the weights, no coarser",
        right=embed,
        shows=EMBEDDING,
        patches=_at("transformer", name="embed", make=faults.embed_scale_rounded),
    ),
    Mistake(
        id="norm-no-plus1",
        instead="the norm multiplies by w",
        fix="multiply by 1 + w",
        right=rms_norm,
        shows=NORMS,
        patches=_every_norm(lambda norm: lambda x, weight, eps: norm(x, weight - 1, eps)),
    ),
    Mistake(
        id="norm-plus1-twice",
        instead="the norm adds 1 to a weight that has it already, as those of GGUF files have",
        fix="subtract 1 when loading such a file, or do not add it",
        right=rms_norm,
        shows=NORMS,
        patches=_every_norm(lambda norm: lambda x, weight, eps: norm(x, weight + 1, eps)),
    ),
    Mistake(
        id="norm-cast-early",
        instead="x / rms(x) is rounded to bfloat16 before it is multiplied by 1 + w",
        fix="multiply in float32, and round the product",
        right=rms_norm,
        shows=NORMS,
        patches=_every_norm(lambda norm: faults.norm_cast_early),
    ),
    Mistake(
        id="rope-bf16",
        instead="cosine and sine of the rotation are bfloat16",
        fix="compute the angles in float32 or float64, and keep cosine and sine in the computation's dtype",
        right=rope_cos_sin,
        shows=ROPE,
        patches=_at(
            "attention", name="rope_cos_sin", make=lambda turn: lambda *rest: tuple(map(faults.bfloat16, turn(*rest)))
        ),
    ),
    Mistake(
        id="rope-interleaved",
        instead="channels 2i and 2i + 1 are turned as a pair",
        fix="pair channel i with channel i + head_dim / 2, or permute the weights to match",
        right=rope,
        shows=ROPE,
        patches=_at("attention", name="rope", make=lambda rope: faults.rope_interleaved),
    ),
    Mistake(
        id="rope-theta-one",
        instead="local and global layers share the global base",
        fix="use rope_local_base_freq (10,000) on local layers, rope_theta (1,000,000) on global ones",
        right=GemmaConfig.rope,
        shows=ROPE,
        patches=_config("rope_local_base_freq", lambda config: config.rope_theta),
        models=("gemma3_text",),
    ),
    Mistake(
        id="rope-scale-missing",
        instead="the positions of the global layers are not divided by the scaling factor",
        fix="divide them by 8 (4B and larger)",
        right=GemmaConfig.rope,
        shows=ROPE,
        patches=_config("rope_scaling_factor", lambda config: 1.0),
        models=("gemma3_text",),
    ),
    Mistake(
        id="rope-scale-everywhere",
        instead="the positions of local layers are divided by the scaling factor, too",
        fix="divide them on global layers alone",
        right=GemmaConfig.rope,
        shows=ROPE,
        patches=_method("rope", faults.rope_scaled_everywhere),
        models=("gemma3_text",),
    ),
    Mistake(
        id="qk-norm-missing",
        instead="queries and keys are not normalised",
        fix="apply q_norm and k_norm, head by head, before the rotation",
        right=attention,
        shows=("*.q_norm", "*.k_norm"),
        patches=_at("attention", name="rms_norm", make=lambda norm: lambda x, weight, eps: x),
        models=("gemma3_text",),
    ),
    Mistake(
        id="qscale-hidden-over-heads",
        instead="scores are divided by sqrt(hidden_size / num_attention_heads)",
        fix="divide them by sqrt(query_pre_attn_scalar)",
        right=attention,
        shows=SCORES,
        patches=_config("query_pre_attn_scalar", lambda config: config.hidden_size / config.num_attention_heads),
    ),
    Mistake(
        id="qscale-head-dim",
        instead="scores are divided by sqrt(head_dim)",
        fix="divide them by sqrt(query_pre_attn_scalar), 144 in the 27B",
        right=attention,
        shows=SCORES,
        patches=_config("query_pre_attn_scalar", lambda config: config.head_dim),
    ),
    Mistake(
        id="attncap-missing",
        instead="scores are not capped (fused attention kernels leave it out)",
        fix="apply 50 * tanh(scores / 50) before the mask",
        right=attention,
        shows=(*CAPPED, *PROBS),
        patches=_at("attention", name="soft_cap", make=lambda soft_cap: lambda x, cap: x),
        models=("gemma2",),
    ),
    Mistake(
        id="attncap-after-mask",
        instead="scores are capped after the mask, so that hidden keys have -50 for -inf",
        fix="cap first, then mask",
        right=attention,
        shows=PROBS,
        patches=faults.softmax_after_capping_the_mask,
        models=("gemma2",),
    ),
    Mistake(
        id="cap-formula",
        instead="the cap is x * tanh(x / cap)",
        fix="cap * tanh(x / cap)",
        right=soft_cap,
        shows=(*CAPPED, "logits_capped"),
        patches=_at(
            "attention", "transformer", name="soft_cap", make=lambda soft_cap: lambda x, cap: x * np.tanh(x / cap)
        ),
        models=("gemma2",),
    ),
    Mistake(
        id="window-parity",
        instead="the layers that should be local are global, and the other way round",
        fix="make the even layers local, from layer 0 on",
        right=GemmaConfig.window,
        shows=PROBS,
        patches=_method("window", faults.window_by_parity),
        models=("gemma2",),
    ),
    Mistake(
        id="window-off-by-one",
        instead="a local layer sees window + 1 keys",
        fix="let a query see keys fewer than `window` positions back: itself and window - 1 others",
        right=attention_mask,
        shows=PROBS,
        patches=_at(
            "attention", name="attention_mask", make=lambda seen: lambda q, k, window: seen(q, k, window and window + 1)
        ),
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        id="window-ignored",
        instead="local layers see everything",
        fix="let them see the last `window` keys",
        right=GemmaConfig.window,
        shows=PROBS,
        patches=_method("window", lambda config, layer: None),
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        id="window-all-layers",
        instead="global layers have the window, too",
        fix="let them see everything up to the query",
        right=GemmaConfig.window,
        shows=PROBS,
        patches=_method("window", lambda config, layer: config.sliding_window),
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        id="gqa-tile",
        instead="key-value heads are tiled: query head i reads key-value head i % K",
        fix="repeat them: query head i reads key-value head i // G",
        right=attention,
        shows=(*SCORES, "*.context"),
        patches=_at("attention", name="grouped_matmul", make=lambda grouped_matmul: faults.per_group_tiled),
    ),
    Mistake(
        id="decode-mask-index",
        instead="in decoding, the mask takes a token's row in its pass for its position",
        fix="count positions from the length of the cache",
        right=attention_mask,
        shows=PROBS,
        patches=faults.mask_by_row,
    ),
    Mistake(
        id="ring-positions",
        instead="once the ring of a local layer has wrapped, the mask takes a slot's number for its key's position",
        fix="work out the position that each slot holds",
        right=attention_mask,
        shows=PROBS,
        patches=faults.mask_by_slot,
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        id="decode-positions",
        instead="in decoding, positions start from zero again",
        fix="rotate by the position in the whole text, which the cache's length tells",
        right=rope_cos_sin,
        shows=ROPE,
        patches=faults.rotation_that_stalls,
    ),
    Mistake(
        id="postnorm-missing",
        instead="what attention and feed-forward return is not normalised",
        fix="apply post_attention_layernorm and post_feedforward_layernorm before the residual is added",
        right=block,
        shows=("*.post_*_layernorm",),
        patches=_at("transformer", name="block", make=lambda right: faults.block_without_post_norms),
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        id="postnorm-misplaced",
        instead="the post-attention norm is applied to the sum with the residual",
        fix="normalise what attention returns, then add it",
        right=block,
        shows=("*.post_attention_layernorm", "*.resid_mid"),
        patches=_at("transformer", name="block", make=lambda right: faults.block_with_post_norm_behind_the_sum),
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        id="norm-names-crossed",
        instead="the weights of post_attention_layernorm and pre_feedforward_layernorm are exchanged",
        fix="post_attention_layernorm is for what attention returns, pre_feedforward_layernorm for what mlp reads",
        right=block,
        shows=("*.post_attention_layernorm", "*.pre_feedforward_layernorm"),
        patches=_at("transformer", name="block", make=faults.crossed_norms),
        models=("gemma2", "gemma3_text"),
    ),
    Mistake(
        id="gelu-exact",
        instead="GELU is computed with erf",
        fix="use the tanh form",
        right=gelu,
        shows=HIDDEN,
        patches=_at("feed_forward", name="gelu", make=lambda gelu: faults.gelu_exact),
    ),
    Mistake(
        id="silu",
        instead="the gate is SiLU (SwiGLU)",
        fix="use GELU in its tanh form",
        right=gelu,
        shows=HIDDEN,
        patches=_at("feed_forward", name="gelu", make=lambda gelu: faults.silu),
    ),
    Mistake(
        id="gate-up-swapped",
        instead="GELU is applied to up_proj's result",
        fix="apply it to gate_proj's: gelu(gate) * up",
        right=feed_forward,
        shows=HIDDEN,
        patches=_at("block", name="feed_forward", make=lambda right: faults.feed_forward_with_gelu_on_up),
    ),
    Mistake(
        id="finalcap-missing",
        instead="the logits are not capped; greedy text is the same, probabilities are not",
        fix="apply 30 * tanh(logits / 30)",
        right=soft_cap,
        shows=("logits_capped",),
        patches=_at("transformer", name="soft_cap", make=lambda soft_cap: lambda x, cap: x),
        models=("gemma2",),
    ),
    Mistake(
        id="finalcap-50",
        instead="the logits are capped with the cap of attention",
        fix="cap them with final_logit_softcapping, 30",
        right=soft_cap,
        shows=("logits_capped",),
        patches=_config("final_logit_softcapping", lambda config: config.attn_logit_softcapping),
        models=("gemma2",),
    ),
    Mistake(
        id="head-transposed",
        instead="the head reads the embedding's numbers in the order of the transposed matrix",
        fix="logits = x @ embedding.T, with the embedding stored [V, D]",
        right=unembed,
        shows=LOGITS,
        patches=_at("transformer", name="unembed", make=lambda unembed: lambda x, E: x @ E.reshape(E.shape[::-1])),
    ),
)
"""In the order of the forward pass. A head of its own weights ("untied") cannot be tried, since they are not known: the
isolated error of `logits` names it."""

"""Mistakes that people really made when porting Gemma, planted one by one: the golden check must see each of them,
in the cases where it is visible, and name the intermediate where it shows first."""

import math
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest

from gemma_np.config import LOCAL
from gemma_np.model.attention import attention
from gemma_np.model.block import block
from gemma_np.model.embedding import embed
from gemma_np.model.feed_forward import feed_forward, gelu
from gemma_np.model.rms_norm import rms_norm
from gemma_np.model.rope import rotation
from gemma_np.model.visibility import masked_softmax, visible
from gemma_np.scope import Scope, within
from gemma_np.storage import linear
from tests.goldens import CASES, check_golden, load

# Where a mistake can be seen: S in any text, W only past the window, D only when texts are read piece by piece.
SEEN = {"S": {"short", "past-window", "decode"}, "W": {"past-window", "decode"}, "D": {"decode"}}


class Fault(NamedTuple):
    seen: str
    model_type: str
    shows_first: str
    patches: dict  # what is replaced, below `gemma_np.`, by what


def norms(faulty):
    return {f"model.{module}.rms_norm": faulty for module in ("attention", "block", "transformer")}


def bfloat16(x):
    return np.asarray(x, ml_dtypes.bfloat16).astype(np.float32)


def norm_cast_early(x, weight, eps):
    return bfloat16(rms_norm(x, np.zeros_like(weight), eps)) * (1 + weight)


def rotation_in_bfloat16(*arguments):
    return tuple(map(bfloat16, rotation(*arguments)))


def rope_interleaved(x, cos, sin):
    turned = np.empty_like(x)
    turned[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
    turned[..., 1::2] = x[..., 1::2] * cos + x[..., 0::2] * sin
    return turned


def rotation_from_zero(positions, *rest):
    return rotation(range(len(positions)), *rest)


def per_group_tiled(heads, shared):
    tiled = np.arange(heads.shape[-3]) % shared.shape[-3]
    return heads @ shared[..., tiled, :, :]


def softmax_of_scores_capped_after_the_mask(scores, mask):
    config, _, _ = load("gemma2")
    masked = np.where(mask, scores, np.float32(-config.attn_logit_softcapping))
    return masked_softmax(masked, np.ones_like(mask))


def visible_by_row(query_positions, key_positions, window):
    return visible(range(len(query_positions)), range(len(key_positions)), window)


def visible_by_slot(query_positions, key_positions, window):
    if window and len(query_positions) == 1:
        slots = len(key_positions)
        return visible([query_positions[0] % slots], range(slots), window)
    return visible(query_positions, key_positions, window)


def visible_one_too_many(query_positions, key_positions, window):
    return visible(query_positions, key_positions, window and window + 1)


def block_without_post_norms(x, weights, config, layer, cache, tape):
    y = tape("input_layernorm", rms_norm(x, weights["input_layernorm.weight"], config.rms_norm_eps))
    y = attention(y, weights / "self_attn", config, layer, cache, within(tape, "self_attn"))
    x = tape("resid_mid", x + tape("post_attention_layernorm", y))
    y = rms_norm(x, weights["pre_feedforward_layernorm.weight"], config.rms_norm_eps)
    y = feed_forward(tape("pre_feedforward_layernorm", y), weights / "mlp", within(tape, "mlp"))
    return tape("resid_post", x + tape("post_feedforward_layernorm", y))


def block_with_post_norm_after_the_sum(x, weights, config, layer, cache, tape):
    y = tape("input_layernorm", rms_norm(x, weights["input_layernorm.weight"], config.rms_norm_eps))
    y = attention(y, weights / "self_attn", config, layer, cache, within(tape, "self_attn"))
    x = rms_norm(x + y, weights["post_attention_layernorm.weight"], config.rms_norm_eps)
    x = tape("resid_mid", tape("post_attention_layernorm", x))
    y = rms_norm(x, weights["pre_feedforward_layernorm.weight"], config.rms_norm_eps)
    y = feed_forward(tape("pre_feedforward_layernorm", y), weights / "mlp", within(tape, "mlp"))
    y = rms_norm(y, weights["post_feedforward_layernorm.weight"], config.rms_norm_eps)
    return tape("resid_post", x + tape("post_feedforward_layernorm", y))


def block_with_crossed_norms(x, weights, *rest):
    crossed = dict(weights)
    crossed["post_attention_layernorm.weight"] = weights["pre_feedforward_layernorm.weight"]
    crossed["pre_feedforward_layernorm.weight"] = weights["post_attention_layernorm.weight"]
    return block(x, Scope(crossed), *rest)


def gelu_exact(x):
    return x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))) / 2


def silu(x):
    return x / (1 + np.exp(-x))


def feed_forward_with_gelu_on_up(x, weights, tape):
    gate = tape("gate", linear(x, weights["gate_proj.weight"]))
    up = tape("up", linear(x, weights["up_proj.weight"]))
    return tape("down", linear(tape("hidden", gate * gelu(up)), weights["down_proj.weight"]))


FAULTS = {
    "embed-scale-absent": Fault(
        *("S", "gemma2", "embedding"),
        {"model.transformer.embed": lambda ids, embedding: embedding[ids]},
    ),
    "embed-scale-twice": Fault(
        *("S", "gemma2", "embedding"),
        {"model.transformer.embed": lambda ids, embedding: embed(ids, embedding) * math.sqrt(embedding.shape[1])},
    ),
    "embed-scale-rounding": Fault(
        *("S", "gemma2", "embedding"),
        {"model.transformer.embed": lambda ids, embedding: embedding[ids] * bfloat16(math.sqrt(embedding.shape[1]))},
    ),
    "norm-no-plus1": Fault(
        *("S", "gemma2", "layers.0.input_layernorm"),
        norms(lambda x, weight, eps: rms_norm(x, weight - 1, eps)),
    ),
    "norm-plus1-twice": Fault(
        *("S", "gemma2", "layers.0.input_layernorm"),
        norms(lambda x, weight, eps: rms_norm(x, weight + 1, eps)),
    ),
    "norm-cast-early": Fault("S", "gemma2", "layers.0.input_layernorm", norms(norm_cast_early)),
    "rope-bf16": Fault(
        *("S", "gemma2", "layers.0.self_attn.q_rope"),
        {"model.attention.rotation": rotation_in_bfloat16},
    ),
    "rope-interleaved": Fault(
        *("S", "gemma2", "layers.0.self_attn.q_rope"),
        {"model.attention.rope": rope_interleaved},
    ),
    "rope-theta-one": Fault(
        *("S", "gemma3_text", "layers.0.self_attn.q_rope"),
        {"config.GemmaConfig.rope_local_base_freq": property(lambda config: config.rope_theta)},
    ),
    "rope-scale-missing": Fault(
        *("S", "gemma3_text", "layers.2.self_attn.q_rope"),
        {"config.GemmaConfig.rope_scaling_factor": property(lambda config: 1.0)},
    ),
    "rope-scale-everywhere": Fault(
        *("S", "gemma3_text", "layers.0.self_attn.q_rope"),
        {
            "config.GemmaConfig.rope": lambda config, layer: (
                config.rope_local_base_freq if config.layer_types[layer] == LOCAL else config.rope_theta,
                config.rope_scaling_factor,
            )
        },
    ),
    "qk-norm-missing": Fault(
        *("S", "gemma3_text", "layers.0.self_attn.q_norm"),
        {"model.attention.rms_norm": lambda x, weight, eps: x},
    ),
    "qscale-hidden-over-heads": Fault(
        *("S", "gemma2", "layers.0.self_attn.scores"),
        {
            "config.GemmaConfig.query_pre_attn_scalar": property(
                lambda config: config.hidden_size / config.num_attention_heads
            )
        },
    ),
    "qscale-head-dim": Fault(
        *("S", "gemma2", "layers.0.self_attn.scores"),
        {"config.GemmaConfig.query_pre_attn_scalar": property(lambda config: config.head_dim)},
    ),
    "attncap-missing": Fault(
        *("S", "gemma2", "layers.0.self_attn.scores_capped"),
        {"model.attention.soft_cap": lambda x, cap: x},
    ),
    "attncap-after-mask": Fault(
        *("S", "gemma2", "layers.0.self_attn.probs"),
        {"model.attention.masked_softmax": softmax_of_scores_capped_after_the_mask},
    ),
    "cap-formula": Fault(
        *("S", "gemma2", "layers.0.self_attn.scores_capped"),
        {f"model.{module}.soft_cap": lambda x, cap: x * np.tanh(x / cap) for module in ("attention", "transformer")},
    ),
    "window-parity": Fault(
        *("W", "gemma2", "layers.0.self_attn.probs"),
        {"config.GemmaConfig.window": lambda config, layer: None if layer % 2 == 0 else config.sliding_window},
    ),
    "window-off-by-one": Fault(
        *("W", "gemma3_text", "layers.0.self_attn.probs"),
        {"model.attention.visible": visible_one_too_many},
    ),
    "window-ignored": Fault(
        *("W", "gemma2", "layers.0.self_attn.probs"),
        {"config.GemmaConfig.window": lambda config, layer: None},
    ),
    "window-all-layers": Fault(
        *("W", "gemma3_text", "layers.2.self_attn.probs"),
        {"config.GemmaConfig.window": lambda config, layer: config.sliding_window},
    ),
    "gqa-tile": Fault(
        *("S", "gemma2", "layers.0.self_attn.scores"),
        {"model.attention.per_group": per_group_tiled},
    ),
    "decode-mask-index": Fault(
        *("D", "gemma2", "layers.0.self_attn.probs"),
        {"model.attention.visible": visible_by_row},
    ),
    "ring-positions": Fault(
        *("D", "gemma2", "layers.0.self_attn.probs"),
        {"model.attention.visible": visible_by_slot},
    ),
    "decode-positions": Fault(
        *("D", "gemma", "layers.0.self_attn.q_rope"),
        {"model.attention.rotation": rotation_from_zero},
    ),
    "postnorm-missing": Fault(
        *("S", "gemma2", "layers.0.post_attention_layernorm"),
        {"model.transformer.block": block_without_post_norms},
    ),
    "postnorm-misplaced": Fault(
        *("S", "gemma2", "layers.0.post_attention_layernorm"),
        {"model.transformer.block": block_with_post_norm_after_the_sum},
    ),
    "norm-names-crossed": Fault(
        *("S", "gemma2", "layers.0.post_attention_layernorm"),
        {"model.transformer.block": block_with_crossed_norms},
    ),
    "gelu-exact": Fault("S", "gemma", "layers.0.mlp.hidden", {"model.feed_forward.gelu": gelu_exact}),
    "silu": Fault("S", "gemma", "layers.0.mlp.hidden", {"model.feed_forward.gelu": silu}),
    "gate-up-swapped": Fault(
        *("S", "gemma", "layers.0.mlp.hidden"),
        {"model.block.feed_forward": feed_forward_with_gelu_on_up},
    ),
    "finalcap-missing": Fault("S", "gemma2", "logits_capped", {"model.transformer.soft_cap": lambda x, cap: x}),
    "finalcap-50": Fault(
        *("S", "gemma2", "logits_capped"),
        {"config.GemmaConfig.final_logit_softcapping": property(lambda config: config.attn_logit_softcapping)},
    ),
    "head-untied": Fault(
        *("S", "gemma2", "logits"),
        {"model.transformer.unembed": lambda x, embedding: linear(x, np.random.default_rng(0).permuted(embedding))},
    ),
    "head-transposed": Fault(
        *("S", "gemma2", "logits"),
        {"model.transformer.unembed": lambda x, embedding: x @ embedding.reshape(embedding.shape[::-1])},
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_golden_check_sees_the_fault(name, monkeypatch):
    fault = FAULTS[name]
    load(fault.model_type)  # now, since a config with a patched field cannot be built
    for target, faulty in fault.patches.items():
        monkeypatch.setattr(f"gemma_np.{target}", faulty, raising=False)  # a field without a default is no attribute
    seen = {}
    for _, case in filter(lambda row: row[0] == fault.model_type, CASES):
        try:
            check_golden(fault.model_type, case)
        except AssertionError as error:
            seen[case] = str(error)
    assert set(seen) == SEEN[fault.seen]
    for message in seen.values():
        assert f": {fault.shows_first}: " in message


@pytest.mark.parametrize(("model_type", "case"), CASES)
def test_without_a_fault_the_golden_check_passes(model_type, case):
    check_golden(model_type, case)

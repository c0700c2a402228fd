"""Mistakes that people really made when porting Gemma, planted one by one: the golden check must see each of them,
in the cases where it is visible, and name the intermediate where it shows first."""

from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import pytest

from gemma_np.model.attention_mask import attention_mask
from gemma_np.model.rope import rope_cos_sin
from gemma_np.oracle.mistakes import CATALOGUE, inject_mistakes
from gemma_np.weights.linear import linear
from tests.support.goldens import CASES, check_golden, load

# Where a mistake can be seen: S in any text, W only past the window, D only when texts are read piece by piece.
SEEN = {"S": {"short", "past-window", "decode"}, "W": {"past-window", "decode"}, "D": {"decode"}}


class Expected(NamedTuple):
    seen: str
    model_type: str
    shows_first: str


EXPECTED = {
    "embed-scale-absent": Expected("S", "gemma2", "embedding"),
    "embed-scale-twice": Expected("S", "gemma2", "embedding"),
    "embed-scale-rounding": Expected("S", "gemma2", "embedding"),
    "norm-no-plus1": Expected("S", "gemma2", "layers.0.input_layernorm"),
    "norm-plus1-twice": Expected("S", "gemma2", "layers.0.input_layernorm"),
    "norm-cast-early": Expected("S", "gemma2", "layers.0.input_layernorm"),
    "rope-bf16": Expected("S", "gemma2", "layers.0.self_attn.q_rope"),
    "rope-interleaved": Expected("S", "gemma2", "layers.0.self_attn.q_rope"),
    "rope-theta-one": Expected("S", "gemma3_text", "layers.0.self_attn.q_rope"),
    "rope-scale-missing": Expected("S", "gemma3_text", "layers.2.self_attn.q_rope"),
    "rope-scale-everywhere": Expected("S", "gemma3_text", "layers.0.self_attn.q_rope"),
    "qk-norm-missing": Expected("S", "gemma3_text", "layers.0.self_attn.q_norm"),
    "qscale-hidden-over-heads": Expected("S", "gemma2", "layers.0.self_attn.scores"),
    "qscale-head-dim": Expected("S", "gemma2", "layers.0.self_attn.scores"),
    "attncap-missing": Expected("S", "gemma2", "layers.0.self_attn.scores_capped"),
    "attncap-after-mask": Expected("S", "gemma2", "layers.0.self_attn.probs"),
    "cap-formula": Expected("S", "gemma2", "layers.0.self_attn.scores_capped"),
    "window-parity": Expected("W", "gemma2", "layers.0.self_attn.probs"),
    "window-off-by-one": Expected("W", "gemma3_text", "layers.0.self_attn.probs"),
    "window-ignored": Expected("W", "gemma2", "layers.0.self_attn.probs"),
    "window-all-layers": Expected("W", "gemma3_text", "layers.2.self_attn.probs"),
    "gqa-tile": Expected("S", "gemma2", "layers.0.self_attn.scores"),
    "decode-mask-index": Expected("D", "gemma2", "layers.0.self_attn.probs"),
    "ring-positions": Expected("D", "gemma2", "layers.0.self_attn.probs"),
    "decode-positions": Expected("D", "gemma", "layers.0.self_attn.q_rope"),
    "postnorm-missing": Expected("S", "gemma2", "layers.0.post_attention_layernorm"),
    "postnorm-misplaced": Expected("S", "gemma2", "layers.0.post_attention_layernorm"),
    "norm-names-crossed": Expected("S", "gemma2", "layers.0.post_attention_layernorm"),
    "gelu-exact": Expected("S", "gemma", "layers.0.mlp.hidden"),
    "silu": Expected("S", "gemma", "layers.0.mlp.hidden"),
    "gate-up-swapped": Expected("S", "gemma", "layers.0.mlp.hidden"),
    "finalcap-missing": Expected("S", "gemma2", "logits_capped"),
    "finalcap-50": Expected("S", "gemma2", "logits_capped"),
    "head-untied": Expected("S", "gemma2", "logits"),
    "head-transposed": Expected("S", "gemma2", "logits"),
}


def rotation_from_zero(positions, *rest):
    return rope_cos_sin(range(len(positions)), *rest)


def visible_by_row(query_positions, key_positions, window):
    return attention_mask(range(len(query_positions)), range(len(key_positions)), window)


def visible_by_slot(query_positions, key_positions, window):
    if window and len(query_positions) == 1:
        slots = len(key_positions)
        return attention_mask([query_positions[0] % slots], range(slots), window)
    return attention_mask(query_positions, key_positions, window)


def untied(x, embedding):
    return linear(x, np.random.default_rng(0).permuted(embedding))


# The catalogue plants these in one pass over all ids; here they are planted in cached decoding itself. And a head of
# its own weights is not in it, since nobody can try weights that are not known.
HERE = {
    "decode-mask-index": ("gemma_np.model.attention.attention_mask", visible_by_row),
    "ring-positions": ("gemma_np.model.attention.attention_mask", visible_by_slot),
    "decode-positions": ("gemma_np.model.attention.rope_cos_sin", rotation_from_zero),
    "head-untied": ("gemma_np.model.transformer.unembed", untied),
}


def test_the_whole_catalogue_is_planted():
    assert set(EXPECTED) == {mistake.id for mistake in CATALOGUE} | set(HERE)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_golden_check_sees_the_fault(name, monkeypatch):
    expected = EXPECTED[name]
    config, _, _ = load(expected.model_type)  # now, since a config with a patched field cannot be built
    with ExitStack() as stack:
        if name in HERE:
            monkeypatch.setattr(*HERE[name])
        else:
            mistake = next(mistake for mistake in CATALOGUE if mistake.id == name)
            stack.enter_context(inject_mistakes((mistake,), config, []))
        seen = {}
        for _, case in filter(lambda row: row[0] == expected.model_type, CASES):
            try:
                check_golden(expected.model_type, case)
            except AssertionError as error:
                seen[case] = str(error)
    assert set(seen) == SEEN[expected.seen]
    for message in seen.values():
        assert f": {expected.shows_first}: " in message


@pytest.mark.parametrize(("model_type", "case"), CASES)
def test_without_a_fault_the_golden_check_passes(model_type, case):
    check_golden(model_type, case)

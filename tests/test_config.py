"""The released models as data, and what a config refuses."""

import dataclasses
import math

import pytest

from gemma_np import RELEASED, GemmaConfig, GemmaError
from gemma_np.config import GLOBAL, LOCAL, layer_pattern

# Written out once more, from the reports: D, layers, H, K, h, F, window, query scale, length, vocabulary.
TABLE = {
    "gemma-2b": (2048, 18, 8, 1, 256, 16384, None, 256, 8192, 256_000),
    "gemma-7b": (3072, 28, 16, 16, 256, 24576, None, 256, 8192, 256_000),
    "gemma-2-2b": (2304, 26, 8, 4, 256, 9216, 4096, 256, 8192, 256_000),
    "gemma-2-9b": (3584, 42, 16, 8, 256, 14336, 4096, 256, 8192, 256_000),
    "gemma-2-27b": (4608, 46, 32, 16, 128, 36864, 4096, 144, 8192, 256_000),
    "gemma-3-270m": (640, 18, 4, 1, 256, 2048, 512, 256, 32_768, 262_144),
    "gemma-3-1b": (1152, 26, 4, 1, 256, 6912, 512, 256, 32_768, 262_144),
    "gemma-3-4b": (2560, 34, 8, 4, 256, 10240, 1024, 256, 131_072, 262_144),
    "gemma-3-12b": (3840, 48, 16, 8, 256, 15360, 1024, 256, 131_072, 262_144),
    "gemma-3-27b": (5376, 62, 32, 16, 128, 21504, 1024, 168, 131_072, 262_144),
}
COLUMNS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("intermediate_size", "sliding_window", "query_pre_attn_scalar", "max_position_embeddings", "vocab_size"),
)
SMALL = GemmaConfig(
    model_type="gemma2",
    vocab_size=11,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    intermediate_size=7,
    max_position_embeddings=32,
    query_pre_attn_scalar=5,
    layer_types=(LOCAL, GLOBAL),
    sliding_window=3,
)


def generation(name):
    return {"gemma-2-": 2, "gemma-3-": 3}.get(name[:8], 1)


def test_the_released_models_are_the_ten_of_the_table():
    assert set(RELEASED) == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_released_sizes(name):
    assert tuple(getattr(RELEASED[name], column) for column in COLUMNS) == TABLE[name]


@pytest.mark.parametrize("name", TABLE)
def test_released_layers_and_constants(name):
    config = RELEASED[name]
    every = {1: 1, 2: 2, 3: 6}[generation(name)]  # every second, every sixth layer is global
    for layer in range(config.num_hidden_layers):
        is_global = layer % every == every - 1
        assert config.window(layer) == (None if is_global else config.sliding_window)
        if generation(name) < 3:
            rope = (10_000.0, 1.0)
        elif is_global:
            rope = (1_000_000.0, 8.0 if name in ("gemma-3-4b", "gemma-3-12b", "gemma-3-27b") else 1.0)
        else:
            rope = (10_000.0, 1.0)
        assert config.rope(layer) == rope
    caps = (50.0, 30.0) if generation(name) == 2 else (None, None)
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == caps
    assert config.rms_norm_eps == 1e-6
    assert config.has_post_norms == (generation(name) > 1)
    assert config.has_qk_norm == (generation(name) == 3)


@pytest.mark.parametrize(
    ("name", "embedding", "rest"),
    [
        ("gemma-2-2b", 590_118_912, 2_024_517_888),
        ("gemma-2-9b", 917_962_752, 8_324_201_984),
        ("gemma-2-27b", 1_180_237_824, 26_047_480_320),
    ],
)
def test_parameter_counts_are_those_of_the_report(name, embedding, rest):
    count = dataclasses.replace(RELEASED[name], vocab_size=256_128).parameter_count()
    assert count.pop("embedding") == embedding
    assert sum(count.values()) == rest


def test_parameters_are_counted_under_their_part():
    count = SMALL.parameter_count()
    D, H, K, h, F, V, layers = 12, 4, 2, 6, 7, 11, 2
    attention, feed_forward = layers * 2 * D * (H + K) * h, layers * 3 * D * F
    norms = (4 * layers + 1) * D
    expected = {"embedding": V * D, "norms": norms, "attention": attention, "feed-forward": feed_forward}
    assert count == expected
    qk_norms = layers * 2 * h
    count = dataclasses.replace(SMALL, model_type="gemma3_text").parameter_count()
    assert sum(count.values()) == sum(expected.values()) + qk_norms


def test_weight_names_are_those_of_the_checkpoints():
    shapes = dict(SMALL.weight_shapes())
    assert list(shapes)[:3] == [
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.weight",
    ]
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (12, 12)
    assert shapes["model.layers.1.self_attn.o_proj.weight"] == (12, 24)
    assert shapes["model.layers.1.mlp.down_proj.weight"] == (12, 7)
    assert len(shapes) == 2 + 2 * 11
    every_layer_global = dataclasses.replace(SMALL, layer_types=(GLOBAL,) * 2)
    counts = {"gemma": 2 + 2 * 9, "gemma2": 2 + 2 * 11, "gemma3_text": 2 + 2 * 13}
    for model_type, count in counts.items():
        config = dataclasses.replace(every_layer_global, model_type=model_type)
        assert len(dict(config.weight_shapes())) == count


def test_layer_pattern():
    assert layer_pattern(3, local_per_global=1) == (LOCAL, GLOBAL, LOCAL)
    assert layer_pattern(1, local_per_global=1) == (LOCAL,)
    assert len(layer_pattern(1000, local_per_global=1)) == 1000
    for layers in (0, 1001, -1, 2.0, "2"):
        with pytest.raises(GemmaError, match=rf"num_hidden_layers: {layers!r}, expected a whole number from 1 to 1000"):
            layer_pattern(layers, local_per_global=1)
    assert layer_pattern(7, local_per_global=2) == (LOCAL, LOCAL, GLOBAL, LOCAL, LOCAL, GLOBAL, LOCAL)


WHOLE = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("intermediate_size", "max_position_embeddings", "sliding_window"),
)
NUMBERS = (
    *("query_pre_attn_scalar", "rope_theta", "rope_local_base_freq", "rope_scaling_factor", "rms_norm_eps"),
    *("attn_logit_softcapping", "final_logit_softcapping"),
)
MAY_BE_NONE = ("rope_local_base_freq", "attn_logit_softcapping", "final_logit_softcapping")


def test_gemma_1_has_no_local_layers():
    with pytest.raises(GemmaError, match="has local layers, expected none since model_type is 'gemma'"):
        dataclasses.replace(RELEASED["gemma-2b"], layer_types=layer_pattern(18, 1), sliding_window=4)


def message_of(**changes):
    with pytest.raises(GemmaError) as error:
        dataclasses.replace(SMALL, **changes)
    return str(error.value)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [0, -1, 2.5, 4.0, True, "4", math.inf, math.nan])
def test_a_whole_number_is_asked_for(name, value):
    assert message_of(**{name: value}) == f"{name}: {value!r}, expected a positive whole number"


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [0, -1.0, True, "4", math.inf, math.nan, [1.0]])
def test_a_number_is_asked_for(name, value):
    assert message_of(**{name: value}) == f"{name}: {value!r}, expected a positive number"


def test_a_long_value_is_shown_in_part():
    message = message_of(vocab_size="x" * 1000)
    assert message == f"vocab_size: '{'x' * 55} ..., expected a positive whole number"


@pytest.mark.parametrize("name", sorted({*WHOLE, *NUMBERS} - {*MAY_BE_NONE, "sliding_window"}))
def test_nothing_is_no_number(name):
    assert message_of(**{name: None}).startswith(f"{name}: None, expected a positive")


@pytest.mark.parametrize("name", MAY_BE_NONE)
def test_a_cap_may_be_absent(name):
    assert getattr(dataclasses.replace(SMALL, **{name: None}), name) is None


def test_a_window_may_be_absent_when_no_layer_is_local():
    assert dataclasses.replace(SMALL, sliding_window=None, layer_types=(GLOBAL, GLOBAL)).window(0) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type: 'llama', expected 'gemma', 'gemma2' or 'gemma3_text'"),
        (
            {"num_key_value_heads": 3},
            "num_attention_heads: 4, expected a multiple of num_key_value_heads=3",
        ),
        ({"head_dim": 5}, "head_dim: 5, expected an even number (RoPE rotates pairs)"),
        ({"layer_types": (LOCAL,)}, "layer_types: 1 entries, expected num_hidden_layers=2"),
        (
            {"layer_types": (LOCAL, "linear_attention")},
            "layer_types: 'linear_attention', expected 'sliding_attention' or 'full_attention'",
        ),
        ({"sliding_window": None}, "sliding_window: missing, expected a number since layer_types has local layers"),
    ],
)
def test_contradictions(changes, message):
    assert message_of(**changes) == message


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.hidden_size = 13

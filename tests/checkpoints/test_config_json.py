"""config.json in every spelling that is met, and what is refused."""

import json

import pytest
from hypothesis import given

from gemma_np import RELEASED, GemmaError
from gemma_np.checkpoints.config_json import config_from_json, config_to_json, read_config
from tests.support.strategies import configs

GEMMA_2B = {
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_activation": None,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
}
GEMMA_2_27B = {
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "head_dim": 128,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 4608,
    "intermediate_size": 36864,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_attention_heads": 32,
    "num_hidden_layers": 46,
    "num_key_value_heads": 16,
    "query_pre_attn_scalar": 144,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 256000,
}
GEMMA_3_1B = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
GEMMA_3_12B = {  # multimodal: of the text part only what differs from the framework's defaults
    "model_type": "gemma3",
    "mm_tokens_per_image": 256,
    "text_config": {
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "model_type": "gemma3_text",
        "num_attention_heads": 16,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}


@pytest.mark.parametrize(
    ("values", "name"), [(GEMMA_2B, "gemma-2b"), (GEMMA_2_27B, "gemma-2-27b"), (GEMMA_3_1B, "gemma-3-1b")]
)
def test_published_files_describe_the_released_models(values, name):
    assert config_from_json(values) == RELEASED[name]


def test_the_text_part_of_a_multimodal_file():
    config = config_from_json(GEMMA_3_12B)
    released = RELEASED["gemma-3-12b"]
    assert config.vocab_size == released.vocab_size + 64  # the rows of the image tokens
    assert {**vars(config), "vocab_size": 0} == {**vars(released), "vocab_size": 0}


def test_old_and_new_spellings_mean_the_same():
    old = GEMMA_3_1B | {"rope_scaling": {"type": "linear", "factor": 4.0}}
    new = {key: value for key, value in old.items() if not key.startswith("rope") and "pattern" not in key}
    new["layer_types"] = ["sliding_attention"] * 5 + ["full_attention"] + ["sliding_attention"] * 5
    new["layer_types"] = [("full" if layer % 6 == 5 else "sliding") + "_attention" for layer in range(26)]
    new["rope_parameters"] = {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1_000_000},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000},
    }
    assert config_from_json(new) == config_from_json(old)
    assert config_from_json(old).rope_scaling_factor == 4
    private = {("_" + key if key == "sliding_window_pattern" else key): value for key, value in old.items()}
    assert config_from_json(private) == config_from_json(old)


def test_the_new_rope_of_gemma_2():
    new = {key: value for key, value in GEMMA_2_27B.items() if key != "rope_theta"}
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": 500.0}
    assert config_from_json(new) == config_from_json(GEMMA_2_27B | {"rope_theta": 500.0})


@pytest.mark.parametrize("name", RELEASED)
def test_what_is_written_is_read_back(name):
    assert config_from_json(json.loads(json.dumps(config_to_json(RELEASED[name])))) == RELEASED[name]


@given(configs())
def test_what_is_written_of_any_config_is_read_back(config):
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


@pytest.mark.framework
@pytest.mark.parametrize("name", RELEASED)
def test_the_framework_reads_the_same_from_what_is_written(name):
    from transformers import AutoConfig

    config = RELEASED[name]
    theirs = AutoConfig.for_model(**config_to_json(config))
    assert config_from_json(theirs.to_dict()) == config
    assert theirs.hidden_activation == "gelu_pytorch_tanh"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type: \"llama\", expected 'gemma', 'gemma2', 'gemma3_text' or 'gemma3'"),
        ({"model_type": None}, "model_type: null"),
        ({"hidden_size": "2304"}, "hidden_size: '2304', expected a positive whole number"),
        ({"hidden_size": -1}, "hidden_size: -1"),
        ({"head_dim": 0}, "head_dim: 0"),
        ({"head_dim": 127}, "head_dim: 127, expected an even number"),
        ({"num_key_value_heads": 5}, "num_attention_heads: 32, expected a multiple of num_key_value_heads=5"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers: 1000000000000, expected a whole number from 1 to 1000"),
        ({"num_hidden_layers": None}, "num_hidden_layers: None"),
        ({"layer_types": ["full_attention"]}, "layer_types: 1 entries, expected num_hidden_layers=46"),
        ({"layer_types": ["other"] * 46}, 'layer_types[0]: "other", expected'),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern: 0"),
        ({"sliding_window": None}, "sliding_window: missing"),
        ({"rope_theta": float("nan")}, "rope_theta: nan, expected a finite number"),
        ({"rope_parameters": 5}, "rope_parameters: 5, expected a JSON object"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type: \"yarn\", expected 'default'"),
        ({"attn_logit_softcapping": "50"}, "attn_logit_softcapping: '50'"),
        ({"hidden_activation": "silu"}, "hidden_activation: \"silu\", expected 'gelu_pytorch_tanh'"),
        ({"attention_bias": True}, "attention_bias: true, expected false"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention: true, expected false"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings: false, expected true"),
    ],
)
def test_values_that_are_refused(change, message):
    with pytest.raises(GemmaError) as error:
        config_from_json(GEMMA_2_27B | change)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["attn_logit_softcapping", "final_logit_softcapping"])
def test_caps_where_no_released_model_has_them(name):
    with pytest.raises(GemmaError, match=f"{name}: 30.0, expected null"):
        config_from_json(GEMMA_3_1B | {name: 30.0})


@pytest.mark.parametrize("name", ["vocab_size", "head_dim", "query_pre_attn_scalar", "attn_logit_softcapping"])
def test_values_that_are_missing(name):
    values = {key: value for key, value in GEMMA_2_27B.items() if key != name}
    with pytest.raises(GemmaError, match=f"{name}: missing"):
        config_from_json(values)


@pytest.mark.parametrize("content", ["", "{", "[1]", '"gemma2"'])
def test_files_that_are_no_config(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(GemmaError, match=r"config\.json: .*expected a JSON object"):
        read_config(path)


def test_no_file(tmp_path):
    with pytest.raises(GemmaError, match=r"config\.json: No such file"):
        read_config(tmp_path / "config.json")

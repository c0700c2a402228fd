"""Whole numbers for weights: the laws of rounding, and other people's rounding."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import GemmaError
from gemma_np.compression import quantization
from gemma_np.compression.quantization import Scheme, in_groups, minmax_grid, quantize
from gemma_np.weights.formats import BFloat16, Float8, Int4, Int8, dequantize, unpack
from tests.support.strategies import normal, seeds

SCHEMES = [
    Scheme("int8"),
    Scheme("int8", 4),
    Scheme("w8a8"),
    Scheme("int4", 4),
    Scheme("int4", 4, zero_points=True),
    Scheme("int4"),
    Scheme("int4", 4, scale_dtype=np.float16),
]
KINDS = {"bfloat16": BFloat16, "int8": Int8, "w8a8": Int8, "int4": Int4, "float8": Float8}
SCALE = st.sampled_from([1e-3, 1.0, 50.0])

schemes = st.sampled_from(SCHEMES)


def matrix(seed, rows, columns, std):
    """Numbers of all sizes, some of them zero, some rows of one sign."""
    weight = std * normal(seed, rows, columns, dtype=np.float32)
    weight[normal(seed + 1, rows, columns) > 1.3] = 0
    weight[normal(seed + 2, rows) > 0.8] **= 2
    return weight


def per_channel(weight, columns):
    """A weight's scales, one for each channel: [out, in]."""
    return np.repeat(weight.scales.astype(np.float32), columns // weight.scales.shape[1], axis=1)


def numbers(weight):
    return weight.integers if isinstance(weight, Int8) else unpack(weight.packed)


@given(schemes, st.integers(1, 5), st.integers(1, 4), SCALE, seeds)
def test_no_weight_is_further_off_than_half_a_step(scheme, rows, groups, std, seed):
    weight = matrix(seed, rows, 4 * groups, std)
    found = quantize(weight, scheme)
    half_steps = per_channel(found, 4 * groups) / 2
    assert (np.abs(weight - dequantize(found)) <= half_steps * (1 + 1e-5)).all()


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_group_of_one_sign_is_no_exception(scheme, sign):
    """Its grid reaches to zero, which lies outside of it."""
    weight = sign * (5 + np.abs(normal(0, 3, 8, dtype=np.float32)))
    found = quantize(weight, scheme)
    assert (np.abs(weight - dequantize(found)) <= per_channel(found, 8) / 2 * (1 + 1e-5)).all()


@given(schemes, st.integers(1, 5), st.integers(1, 4), SCALE, seeds)
def test_zero_stays_zero(scheme, rows, groups, std, seed):
    weight = matrix(seed, rows, 4 * groups, std)
    assert (dequantize(quantize(weight, scheme))[weight == 0] == 0).all()
    assert (dequantize(quantize(0 * weight, scheme)) == 0).all()


@given(schemes, st.integers(1, 5), st.integers(1, 4), SCALE, seeds)
def test_rounding_what_is_rounded_changes_nothing(scheme, rows, groups, std, seed):
    once = quantize(matrix(seed, rows, 4 * groups, std), scheme)
    again = quantize(dequantize(once), scheme)
    if scheme.zero_points:  # a group that did not use its last number gets a finer grid
        used = unpack(once.packed).reshape(rows, -1, 4) if scheme.group_size else None
        whole = (used.max(-1) == 15) & (used.min(-1) == 0)
        same = (unpack(again.packed) == unpack(once.packed)).reshape(rows, -1, 4).all(-1)
        assert same[whole].all()
    else:
        assert (numbers(again) == numbers(once)).all()
        np.testing.assert_allclose(again.scales, once.scales, rtol=1e-3 if scheme.scale_dtype == np.float16 else 1e-6)


@given(schemes, st.integers(1, 5), st.integers(1, 4), SCALE, seeds)
def test_the_grid_of_mse_has_no_more_error_than_the_full_one(scheme, rows, groups, std, seed):
    weight = matrix(seed, rows, 4 * groups, std).astype(np.float64)
    errors = [
        np.square(in_groups(dequantize(quantize(weight, scheme, mse=mse)) - weight, scheme)).sum(-1)
        for mse in (True, False)
    ]
    assert (errors[0] <= errors[1] * (1 + 1e-4) + 1e-12 * np.square(weight).max()).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_lies_beyond_the_grid_gets_its_last_number(scheme):
    weight = np.array([[-8, -1, 1, 8]], np.float32)
    found = minmax_grid(weight, scheme, 0.5).nearest(in_groups(weight, scheme)).ravel()
    lowest, highest = {"int8": (-127, 127), "w8a8": (-127, 127), "int4": (0, 15)}[scheme.format]
    assert (found[0], found[3]) == (lowest, highest)
    assert lowest < found[1] < found[2] < highest


@pytest.mark.parametrize("scheme", [*SCHEMES, Scheme("float8"), Scheme("bfloat16")])
@pytest.mark.parametrize("mse", [False, True])
def test_rows_taken_in_any_number_at_once_are_the_same(scheme, mse, monkeypatch):
    weight = matrix(0, 23, 8, 1.0)
    whole = quantize(weight, scheme, mse=mse)
    monkeypatch.setattr(quantization, "_BLOCK", 40)
    parts = quantize(weight, scheme, mse=mse)
    assert type(parts) is type(whole) is KINDS[scheme.format]
    assert (dequantize(parts) == dequantize(whole)).all()


@given(st.integers(1, 5), st.integers(1, 9), SCALE, seeds)
def test_floats_of_16_and_8_bits_are_rounded_to_the_nearest(rows, columns, std, seed):
    weight = matrix(seed, rows, columns, std)
    assert (quantize(weight, Scheme("bfloat16")).numbers == weight.astype(ml_dtypes.bfloat16)).all()
    found = quantize(weight, Scheme("float8"))
    largest = np.abs(weight).max(axis=1, keepdims=True)
    # four significant bits, or half of the format's smallest step, 2^-9, where the largest number is 448
    assert (
        np.abs(dequantize(found) - weight) <= np.maximum(np.abs(weight) / 16, largest / 448 * 2**-10) * 1.0001
    ).all()


def test_what_is_stored_can_be_quantized_anew():
    weight = quantize(matrix(0, 5, 8, 1.0), Scheme("bfloat16"))
    assert (
        dequantize(quantize(weight, Scheme("int8"))) == dequantize(quantize(dequantize(weight), Scheme("int8")))
    ).all()


INT8_F16, INT4_F16 = (Scheme(format, 32, scale_dtype=np.float16) for format in ("int8", "int4"))


@pytest.mark.parametrize("scheme", [INT8_F16, INT4_F16])
def test_the_schemes_of_gguf_have_16_bit_scales_that_reach_as_far(scheme):
    weight = matrix(0, 50, 64, 1.0)
    found = quantize(weight, scheme)
    assert found.scales.dtype == np.float16
    largest = np.abs(weight.reshape(50, 2, 32)).max(-1)
    assert (found.scales.astype(np.float32) * (127 if scheme is INT8_F16 else 7) >= largest).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scheme("int3"), "format: 'int3', expected one of bfloat16, int8, w8a8, int4, float8"),
        (lambda: Scheme("int4", 3), "group_size: 3, expected an even number, 2 or more"),
        (lambda: Scheme("int8", 0), "group_size: 0, expected an even number, 2 or more"),
        (lambda: Scheme("int8", -2), "group_size: -2, expected an even number, 2 or more"),
        (lambda: Scheme("float8", 32), "group_size: 32 for float8, expected one for int8 or int4 only"),
        (lambda: Scheme("int8", zero_points=True), "zero_points: for int8, expected int4"),
        (lambda: quantize(np.ones((2, 6)), Scheme("int4", 4)), "6 channels, expected a multiple of group_size=4"),
        (lambda: quantize(np.ones((2, 5)), Scheme("int4")), "5 channels, expected an even number for int4"),
    ],
)
def test_what_does_not_go_together(make, message):
    with pytest.raises(GemmaError, match=message):
        make()


@pytest.mark.framework
@pytest.mark.filterwarnings("ignore:torch.quantize_per")
def test_int8_is_torch_s():
    import torch

    weight = matrix(0, 40, 64, 1.0)
    found = quantize(weight, Scheme("int8"))
    scales = torch.from_numpy(found.scales[:, 0])
    theirs = torch.quantize_per_channel(torch.from_numpy(weight), scales, torch.zeros(40), 0, torch.qint8)
    assert (theirs.int_repr().numpy() == found.integers).all()
    assert (theirs.dequantize().numpy() == dequantize(found)).all()


@pytest.mark.framework
@pytest.mark.parametrize("zero_points", [False, True])
def test_int4_is_torch_s(zero_points):
    import torch

    weight, scheme = matrix(0, 40, 64, 1.0), Scheme("int4", 16, zero_points)
    found, grid = quantize(weight, scheme), minmax_grid(weight, scheme)
    assert isinstance(found, Int4)
    groups = torch.from_numpy(weight.reshape(160, 16))
    scales, zeros = (torch.from_numpy(values.ravel()) for values in (grid.scales, grid.zeros))
    theirs = torch.fake_quantize_per_channel_affine(groups, scales, zeros.to(torch.int32), 0, 0, 15)
    assert (theirs.numpy().reshape(40, 64) == dequantize(found)).mean() > 0.999  # ties of theirs fall elsewhere
    np.testing.assert_allclose(theirs.numpy().reshape(40, 64), dequantize(found), atol=float(scales.max()) * 1.01)

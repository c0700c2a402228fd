"""Averages of weights, and dtypes that cannot hold them."""

import re

import numpy as np
import pytest

from gemma_np import GemmaError
from gemma_np.training.merging import DTYPES, merge
from tests.support import tiny

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(("dtype", "value"), [("float16", 1e6), ("float16", -65505), ("bfloat16", 3.4e38)])
def test_a_weight_that_is_too_large_for_the_dtype_is_named(dtype, value):
    message = rf"{re.escape(NAME)}: {re.escape(f'{abs(value):g}')} in it, expected at most .* for {dtype}"
    with pytest.raises(GemmaError, match=message):
        merge([tiny.with_number(tiny.gemma(), NAME, value)], dtype)
    assert merge([tiny.with_number(tiny.gemma(), NAME, value)]).weights[NAME].flat[3] == np.float32(value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(dtype, value):
    with pytest.raises(GemmaError, match=rf"^{re.escape(NAME)}: NaN or infinity among its float32 numbers"):
        merge([tiny.gemma(), tiny.with_number(tiny.gemma(), NAME, value)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_weight_of_a_dtype_is_kept(dtype):
    assert np.isfinite(merge([tiny.with_number(tiny.gemma(), NAME, 65504)], dtype).weights[NAME]).all()

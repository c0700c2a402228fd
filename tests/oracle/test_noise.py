"""The error that rounding alone may cause."""

import numpy as np
import pytest

from gemma_np import Gemma
from gemma_np.oracle.comparison import compare
from gemma_np.oracle.dump import Alignment
from gemma_np.oracle.noise import EPS, SAFETY_FACTOR, noise_thresholds, relative_error
from gemma_np.oracle.trace import Reference
from tests.support import tiny

IDS = [2, 5, 9, 40, 7, 31]


def exact(reference, records):
    """What records should be that do not depend on each other."""
    return reference.records()


@pytest.fixture(scope="module")
def reference():
    model = tiny.gemma()
    weights = {name: weight.astype(np.float64) for name, weight in model.weights.items()}
    return Reference(Gemma(model.config, weights, None), [IDS])


@pytest.mark.parametrize("dtype", EPS)
def test_the_first_record_may_be_off_by_half_to_one_step_of_the_dtype(dtype, reference):
    """Nothing is rounded before the embedding, so its noise is one rounding; its threshold has the safety factor."""
    threshold = noise_thresholds(reference, ["embedding"], dtype, exact)["embedding"] / SAFETY_FACTOR[dtype]
    assert EPS[dtype] == float(np.finfo(dtype).eps) if dtype != "bfloat16" else EPS[dtype] == 2.0**-7
    assert EPS[dtype] / 2 <= threshold <= EPS[dtype] * 1.01


@pytest.mark.parametrize("dtype", EPS)
def test_a_record_that_rounding_does_not_change_may_be_off_by_half_a_step(dtype, reference):
    silent = {"model.layers.3.mlp.down_proj.weight": np.zeros((12, 7))}
    model = Gemma(reference.model.config, {**reference.model.weights, **silent}, None)
    threshold = noise_thresholds(Reference(model, [IDS]), ["layers.3.mlp.down"], dtype, exact)["layers.3.mlp.down"]
    assert threshold == SAFETY_FACTOR[dtype] * EPS[dtype] / 2


def test_an_error_is_relative_to_the_largest_number_that_is_not_masked():
    found, expected = np.array([0.1, 0.5, 9.0]), np.array([0.2, 0.25, 1e6])
    assert relative_error(found, expected, np.array([False, False, True])) == (1.0, (1,))
    assert relative_error(found[:2], expected[:2]) == (1.0, (1,))


def test_the_safety_factors():
    assert SAFETY_FACTOR == {"float64": 32, "float32": 32, "bfloat16": 8, "float16": 8}


def test_a_float64_dump_passes_and_a_float32_one_does_not(reference):
    theirs = reference.records()
    assert {row.status for row in compare(Alignment(reference, theirs, {}), "float64")} == {"OK"}
    rounded = {name: record.astype(np.float32) for name, record in theirs.items()}
    assert "DIFF" in {row.status for row in compare(Alignment(reference, rounded, {}), "float64")}
    assert max(row.threshold for row in compare(Alignment(reference, theirs, {}), "float64")) < 1e-11


def test_a_record_that_is_missing_has_no_error(reference):
    theirs = reference.records()
    del theirs["layers.1.mlp.up"]
    (row,) = [row for row in compare(Alignment(reference, theirs, {}), "float64") if row.status == "MISSING"]
    assert (row.key, row.error, row.threshold, row.where, row.note) == ("layers.1.mlp.up", 0.0, 0.0, (), "")
    assert not row.differs

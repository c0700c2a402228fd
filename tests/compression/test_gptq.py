"""GPTQ: against the paper's own loop, and never worse than rounding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import GemmaError
from gemma_np.compression.gptq import gptq, output_error, round_in_turn
from gemma_np.compression.quantization import Scheme, in_groups, minmax_grid, quantize
from gemma_np.weights.formats import dequantize
from tests.support.strategies import normal, seeds

SCHEMES = st.sampled_from([Scheme("int8"), Scheme("int4", 4), Scheme("int4", 4, zero_points=True)])


def case(seed, rows, columns, samples):
    """A weight, and the second moments of inputs whose channels go together."""
    x = normal(seed, samples, columns) @ normal(seed + 1, columns, columns) + normal(seed + 2, columns)
    return normal(seed + 3, rows, columns, dtype=np.float32), (x.T @ x).astype(np.float32)


def one_by_one(weight, gram, grid):
    """The paper's loop before its shortcuts: round a channel, let all that are left answer its error, and take it out
    of the inverse of H by a step of elimination."""
    columns = weight.shape[1]
    damped = gram.astype(np.float64) + 0.01 * np.diagonal(gram).mean() * np.eye(columns)
    inverse, left = np.linalg.inv(damped), weight.astype(np.float64)
    size = columns // grid.scales.shape[1]
    numbers = np.empty_like(left)
    for c in np.argsort(-np.diagonal(gram), kind="stable"):
        for r in range(len(weight)):
            scale, zero = grid.scales[r, c // size, 0], grid.zeros[r, c // size, 0]
            numbers[r, c] = np.clip(np.rint(left[r, c] / scale) + zero, grid.lowest, grid.highest)
            error = (left[r, c] - scale * (numbers[r, c] - zero)) / inverse[c, c]
            left[r] -= error * inverse[c]
        inverse = inverse - np.outer(inverse[:, c], inverse[c]) / inverse[c, c]
        inverse[c, c] = 1  # never looked at again
    return numbers


@pytest.mark.parametrize(("columns", "samples"), [(8, 30), (12, 5), (140, 400)])
@pytest.mark.parametrize("scheme", [Scheme("int8"), Scheme("int4", 4)])
def test_the_numbers_are_those_of_the_plain_loop(scheme, columns, samples):
    weight, gram = case(0, 6, columns, samples)
    grid = minmax_grid(weight, scheme)
    found, expected = round_in_turn(weight, gram, grid).reshape(6, columns), one_by_one(weight, gram, grid)
    assert (found == expected).mean() > 0.99  # float32 may decide a tie otherwise, and then what follows
    errors = [output_error(grid.values(in_groups(n, scheme)), weight, gram).sum() for n in (found, expected)]
    assert abs(errors[0] - errors[1]) < 0.01 * errors[1]


@given(SCHEMES, st.integers(1, 5), st.integers(1, 4), st.integers(1, 30), seeds)
def test_on_real_inputs_no_row_is_further_off_than_with_rounding(scheme, rows, groups, samples, seed):
    weight, gram = case(seed, rows, 4 * groups, samples)
    found = output_error(dequantize(gptq(weight, gram, scheme)), weight, gram)
    for mse in (False, True):
        rounded = output_error(dequantize(quantize(weight, scheme, mse=mse)), weight, gram)
        assert (found <= rounded * (1 + 1e-3) + 1e-6 * np.abs(gram).max()).all()


@pytest.mark.parametrize("mse", [False, True])
def test_nor_where_there_is_little_to_make_up_for(mse):
    """With inputs that hardly go together each of the three ways is the best one for some rows."""
    weight, x = normal(0, 500, 16, dtype=np.float32), normal(1, 400, 16, dtype=np.float32)
    gram, scheme = x.T @ x, Scheme("int4", 4)
    found, rounded = gptq(weight, gram, scheme), quantize(weight, scheme, mse=mse)
    errors = [output_error(dequantize(each), weight, gram) for each in (found, rounded)]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()


def test_it_is_clearly_better_where_inputs_go_together():
    weight, gram = case(0, 64, 32, 500)
    scheme = Scheme("int4", 8)
    errors = [
        output_error(dequantize(each), weight, gram).sum()
        for each in (gptq(weight, gram, scheme), quantize(weight, scheme))
    ]
    assert errors[0] < 0.6 * errors[1]


@given(SCHEMES, seeds)
def test_inputs_that_have_nothing_to_do_with_each_other_leave_rounding(scheme, seed):
    weight = normal(seed, 3, 8, dtype=np.float32)
    grid = minmax_grid(weight, scheme)
    found = round_in_turn(weight, np.eye(8, dtype=np.float32), grid)
    assert (found == grid.nearest(in_groups(weight, scheme))).all()


@pytest.mark.parametrize("samples", [0, 1])
def test_inputs_that_never_came_or_came_once(samples):
    weight, x = normal(0, 3, 8, dtype=np.float32), normal(1, samples, 8, dtype=np.float32)
    x[:, 4:] = 0
    found = dequantize(gptq(weight, x.T @ x, Scheme("int4", 4)))
    assert np.isfinite(found).all()
    assert (np.abs(found - weight) < 1).all()


@pytest.mark.parametrize(("columns", "scheme"), [(10, Scheme("int4", 4)), (7, Scheme("int4"))])
def test_channels_that_do_not_fit_the_scheme_are_refused(columns, scheme):
    with pytest.raises(GemmaError, match=f"weight: {columns} channels, expected"):
        gptq(normal(0, 3, columns), np.eye(columns), scheme)

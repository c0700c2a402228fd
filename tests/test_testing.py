"""The checkers for other people's tests: right functions pass, wrong ones fail with the smallest shapes."""

import sys

import numpy as np
import pytest

from gemma_np import GemmaError
from gemma_np.testing import OPERATIONS, assert_matches_reference, from_command
from tests.support import naive

WRONG = {  # common mistakes
    "rms_norm": lambda x, weight, eps: x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight,
    "soft_cap": lambda x, cap: x * np.tanh(x / cap),
    "gelu": lambda x: x / (1 + np.exp(-x)),
    "embed": lambda ids, embedding: embedding[ids],
    "linear_backward": lambda dy, x, weight: (dy @ weight, x.T @ dy),
    "feed_forward": lambda x, gate, up, down: (gelu(x @ up.T) * (x @ gate.T)) @ down.T,
    "cross_entropy": lambda logits, targets: (np.zeros(len(targets)), np.zeros_like(logits)),
}


def gelu(x):
    return OPERATIONS["gelu"].reference(x)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_reference_matches_itself(name, dtype):
    assert_matches_reference(name, OPERATIONS[name].reference, dtype, examples=20)


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_fails(name):
    with pytest.raises(AssertionError, match=rf"{name}\("):
        assert_matches_reference(name, WRONG[name])


def test_the_smallest_failing_shape_is_reported():
    """A function that drops all tokens but the first is right for one token and wrong from two on."""

    def first_only(x, weight, eps):
        y = OPERATIONS["rms_norm"].reference(x, weight, eps)
        return np.concatenate([y[:1], np.zeros_like(y[1:])])

    with pytest.raises(AssertionError, match=r"x \(2, 2\), weight \(2,\)"):
        assert_matches_reference("rms_norm", first_only)


def test_a_loop_matches():
    assert_matches_reference(
        "rms_norm", lambda x, weight, eps: np.stack([naive.rms_norm(row, weight, eps) for row in x])
    )


def test_a_wrong_number_of_results_fails():
    with pytest.raises(AssertionError, match="1 results, expected 2"):
        assert_matches_reference("rms_norm_backward", lambda dy, x, weight, eps: dy)


def test_an_unknown_operation_is_refused():
    with pytest.raises(GemmaError, match="operation: 'layer_norm', expected one of linear"):
        assert_matches_reference("layer_norm", abs)


PROGRAM = """
import sys
import numpy as np
from safetensors.numpy import load_file, save_file
name, arguments, result = sys.argv[1:]
a = load_file(arguments)
if name == "rms_norm":
    y = a["x"] / np.sqrt((a["x"] ** 2).mean(-1, keepdims=True) + a["eps"]) * (1 + a["weight"])
    save_file({"0": y.astype(np.float32)}, result)
elif name == "gelu":
    sys.exit("not implemented")
"""


def test_a_program_is_checked_through_files(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py")]
    assert_matches_reference("rms_norm", from_command(command, "rms_norm"), examples=5)
    with pytest.raises(GemmaError, match="exit status 1: not implemented"):
        assert_matches_reference("gelu", from_command(command, "gelu"), examples=5)
    with pytest.raises(GemmaError, match="wrote no results"):
        assert_matches_reference("soft_cap", from_command(command, "soft_cap"), examples=5)

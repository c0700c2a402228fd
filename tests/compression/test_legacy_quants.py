"""IQ4_NL: the table of its values, and the nearest one of them."""

import gguf
import numpy as np

from gemma_np.compression.legacy_quants import IQ4_NL_VALUES, round_to_iq4_nl


def test_the_values_are_those_of_the_library():
    assert gguf.quants.IQ4_NL.kvalues == tuple(IQ4_NL_VALUES)


def test_each_number_becomes_the_nearest_value():
    numbers = np.linspace(-200, 200, 40001, dtype=np.float32)
    off = np.abs(round_to_iq4_nl(numbers.copy()) - numbers)
    assert np.allclose(off, np.abs(numbers[:, None] - IQ4_NL_VALUES).min(1), atol=1e-4)

"""Reading one tensor: in blocks, and whether it is finite."""

import numpy as np
import pytest

from gemma_np.checkpoints.loading import StoredTensor, load_tensor

BLOCK = 4 * 2**20  # float32 numbers in 16 MB


@pytest.mark.parametrize("shape", [(300, 40_000), (2**23 + 1,), (3, 2**23)])
def test_a_tensor_is_read_in_blocks_of_16_mb_or_one_row(shape):
    read = []

    def zeros(start, stop):
        read.append((start, stop))
        return np.zeros((stop - start, *shape[1:]), np.float16)

    sizes = []
    weight, finite = load_tensor(StoredTensor(shape, zeros), np.dtype(np.float32), sizes.append)
    assert weight.shape == shape
    assert weight.dtype == np.float32
    assert finite
    assert [start for start, _ in read] == [0, *(stop for _, stop in read[:-1])]
    assert sum(sizes) == weight.size
    assert max(sizes) <= max(BLOCK, weight[0].size)
    assert len(sizes) <= 4


@pytest.mark.parametrize("where", [0, 150, 299])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found_in_every_block(where, value):
    stored = np.zeros((300, 40_000), np.float16)
    stored[where, -1] = value
    tensor = StoredTensor(stored.shape, lambda start, stop: stored[start:stop])
    assert not load_tensor(tensor, np.dtype(np.float32), lambda size: None)[1]
    mapped = StoredTensor(stored.shape, lambda start, stop: pytest.fail("read"), mapped=stored)
    weight, finite = load_tensor(mapped, np.dtype(np.float16), lambda size: None)
    assert weight is stored
    assert not finite

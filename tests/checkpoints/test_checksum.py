"""Checksums find every change."""

import zlib

import numpy as np
import pytest

from gemma_np import GemmaError
from gemma_np.checkpoints.checksum import CHECKSUM, checksum, folder_checksum
from gemma_np.json_input import check_json


def test_the_checksum_of_an_array_depends_on_every_bit():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for number in range(array.nbytes * 8):
        changed = bytearray(array.tobytes())
        changed[number // 8] ^= 1 << number % 8
        assert checksum(np.frombuffer(changed, np.float32)) != checksum(array)
    assert checksum(array.T) == checksum(array.T.copy())


def test_the_checksum_of_a_folder_depends_on_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("one")
    (tmp_path / "b").write_text("two")
    before = folder_checksum(tmp_path)
    assert before == zlib.crc32(b"aonebtwo")
    (tmp_path / "b").write_text("twO")
    assert folder_checksum(tmp_path) != before
    (tmp_path / "b").write_text("two")
    assert folder_checksum(tmp_path) == before
    (tmp_path / "b").rename(tmp_path / "c")
    assert folder_checksum(tmp_path) != before
    (tmp_path / "d").mkdir()
    with pytest.raises(GemmaError, match="d: a folder, expected a file of a checkpoint"):
        folder_checksum(tmp_path)


def test_a_checksum_has_32_bits():
    check_json(2**32 - 1, CHECKSUM, ("checksum",))
    with pytest.raises(GemmaError, match="checksum"):
        check_json(2**32, CHECKSUM, ("checksum",))

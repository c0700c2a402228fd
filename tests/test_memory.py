"""The memory that writing text takes, foretold and measured."""

import subprocess
import sys

import pytest

from gemma_np.checkpoints.random_weights import random_weights
from gemma_np.checkpoints.saving import save_folder
from gemma_np.config import gemma2_config
from gemma_np.memory import STORAGE, activation_bytes, cache_bytes, peak_memory, weight_bytes
from gemma_np.model.kv_cache import KVCache
from gemma_np.weights.formats import stored_bytes

CONFIG = gemma2_config(32_000, 768, 12, 8, 4, 64, 3072, 2048, 64, 256)
KINDS = {"float32": "float32", "bfloat16": "bfloat16 (as published)", "int8": "int8", "int4": "int4, groups of 64"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_take_what_they_take(kind):
    found = sum(stored_bytes(weight) for _, weight in random_weights(CONFIG, kind))
    assert found == weight_bytes(CONFIG, KINDS[kind])


@pytest.mark.parametrize("length", [1, 256, 257, 2048])
def test_the_cache_takes_what_it_takes(length):
    found = sum(layer.keys.nbytes + layer.values.nbytes for layer in KVCache(CONFIG, length).layers)
    assert found == cache_bytes(CONFIG, length)


GENERATE = """
import sys
import gemma_np
from gemma_np.memory import peak_memory
import ml_dtypes, safetensors.numpy, tqdm, concurrent.futures
before = peak_memory()
model = gemma_np.load(sys.argv[1], "stored")
list(model.stream_ids(list(range(1000)), max_new_tokens=3))
print(peak_memory() - before)
"""


@pytest.mark.skipif(not peak_memory(), reason="this system does not tell the peak")
@pytest.mark.parametrize("kind", KINDS)
def test_the_peak_is_foretold_to_a_tenth(kind, tmp_path):
    save_folder(tmp_path / "model", CONFIG, random_weights(CONFIG, kind), None)
    found = int(subprocess.check_output([sys.executable, "-c", GENERATE, str(tmp_path / "model")]))
    storage = KINDS[kind]
    told = sum((weight_bytes(CONFIG, storage), cache_bytes(CONFIG, 1003), activation_bytes(CONFIG, 1003)))
    assert abs(found - told) < 0.1 * told, f"{found / 1e6:.1f} MB, foretold {told / 1e6:.1f} MB"


def test_every_row_of_the_table_is_smaller_than_the_one_before():
    sizes = [weight_bytes(CONFIG, storage) for storage in STORAGE]
    assert sizes == sorted(sizes, reverse=True)

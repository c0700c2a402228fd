"""The memory of generation, estimated and measured."""

import subprocess
import sys

import pytest

from gemma_np.checkpoints.gguf_mixture import mixture_bytes
from gemma_np.checkpoints.random_weights import RANDOM_FORMATS, random_weights
from gemma_np.checkpoints.saving import save_folder
from gemma_np.cli.info import MEMORY_TABLE
from gemma_np.config import gemma2_config
from gemma_np.memory import activation_bytes, cache_bytes, peak_memory, weight_bytes
from gemma_np.model.kv_cache import KVCache
from gemma_np.weights.formats import FORMATS, stored_bytes

CONFIG = gemma2_config(
    vocab_size=32_000,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    intermediate_size=3072,
    max_position_embeddings=2048,
    query_pre_attn_scalar=64,
    sliding_window=256,
)


@pytest.mark.parametrize("format", RANDOM_FORMATS)
def test_weight_bytes_is_what_the_weights_take(format):
    taken = sum(stored_bytes(weight) for _, weight in random_weights(CONFIG, format))
    assert taken == expected_bytes(format)


def expected_bytes(format):
    return weight_bytes(CONFIG, format) if format in FORMATS else mixture_bytes(CONFIG, format)


@pytest.mark.parametrize("length", [1, 256, 257, 2048])
def test_cache_bytes_is_what_the_cache_takes(length):
    taken = sum(layer.keys.nbytes + layer.values.nbytes for layer in KVCache(CONFIG, length).layers)
    assert taken == cache_bytes(CONFIG, length)


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


@pytest.mark.skipif(not peak_memory(), reason="this system does not report the peak")
@pytest.mark.parametrize("format", RANDOM_FORMATS)
def test_the_peak_is_estimated_within_a_tenth(format, tmp_path):
    save_folder(tmp_path / "model", CONFIG, random_weights(CONFIG, format), None)
    peak = int(subprocess.check_output([sys.executable, "-c", GENERATE, str(tmp_path / "model")]))
    kind = format if format in FORMATS else "Q4_K"
    estimate = sum((expected_bytes(format), cache_bytes(CONFIG, 1003), activation_bytes(CONFIG, 1003, kind)))
    assert abs(peak - estimate) < 0.1 * estimate, f"{peak / 1e6:.1f} MB, estimated {estimate / 1e6:.1f} MB"


def test_every_row_of_the_table_is_smaller_than_the_one_before():
    sizes = [weight_bytes(CONFIG, format, group_size) for format, group_size in MEMORY_TABLE.values()]
    assert sizes == sorted(sizes, reverse=True)

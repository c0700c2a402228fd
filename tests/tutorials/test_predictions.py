"""The questions "Predict" and "Try" of the tutorials: one form, and answers that are true.

What a notebook asserts itself is not tested again here.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest

import gemma_np
from gemma_np.config import RELEASED
from gemma_np.memory import cache_bytes, weight_bytes
from gemma_np.model.attention_mask import attention_mask, masked_softmax, masked_softmax_backward
from gemma_np.model.rope import rope_cos_sin
from gemma_np.model.soft_cap import soft_cap, soft_cap_backward
from gemma_np.oracle.mistakes import CATALOGUE, inject_mistakes
from gemma_np.text.sampling import Sampling

SOURCES = sorted((Path(__file__).parents[2] / "tutorials/sources").glob("*.py"))
LINE = "To be, or not to be, that is the question."
KIND = re.compile(r"^# \*\*(Predict|Try):\*\* ", re.MULTILINE)
FORM = re.compile(  # a question, and its answer in a part that opens
    KIND.pattern
    + r"[^\n]+(?:\n# [^\n]+)*\n#\n# <details><summary>Reveal</summary>\n#\n(?:# [^\n]+\n)+#\n# </details>$",
    re.MULTILINE,
)


@pytest.fixture(scope="module")
def model():
    return gemma_np.load()


def wrong_logits(model, id, ids):
    [mistake] = (mistake for mistake in CATALOGUE if mistake.id == id)
    with inject_mistakes([mistake], model.config, [len(ids)]):
        return model.logits(ids)


def changed(model, id, text):
    """The perplexity of a text with a mistake."""
    [mistake] = (mistake for mistake in CATALOGUE if mistake.id == id)
    with inject_mistakes([mistake], model.config, [len(model.tokenizer.encode(text))]):
        return model.perplexity(text)


@pytest.mark.parametrize("source", SOURCES[:16], ids=lambda source: source.stem)
def test_each_tutorial_asks_before_it_shows(source):
    text = source.read_text(encoding="utf-8")
    assert 2 <= len(re.findall(r"^# \*\*Predict:", text, re.MULTILINE)) <= 4
    assert len(FORM.findall(text)) == len(KIND.findall(text)) == text.count("<summary>Reveal</summary>")
    assert text.count("**Try:**") == text.count("\nexplore(")


def test_tokens(model):
    tokenizer = model.tokenizer
    cafe = tokenizer.encode("a café")
    assert tokenizer.decode(cafe[:-1]) == "a caf\ufffd"
    vocabulary = {piece: id for id, piece in enumerate(["e", "l", "n", "o", "r", "w", "lo", "low", "er", "ne", "new"])}
    assert min((vocabulary[pair], pair) for pair in ("ne", "er")) == (8, "er")


def test_parts_of_the_parameters():
    counts = {name: RELEASED[name].parameter_count() for name in RELEASED}
    share = {name: count["embedding"] / sum(count.values()) for name, count in counts.items()}
    found = [round(100 * share[f"gemma-{name}"]) for name in ("3-270m", "2-2b", "2-9b", "2-27b")]
    assert found == [63, 23, 10, 4]
    assert RELEASED["gemma-3-270m"].num_hidden_layers == 18


def test_perplexities_of_mistakes(model):
    assert model.perplexity(LINE) == pytest.approx(41, abs=0.5)
    assert changed(model, "embed-scale-absent", LINE) == pytest.approx(470, rel=0.02)
    assert changed(model, "embed-scale-twice", LINE) == pytest.approx(50_000, rel=0.02)
    assert changed(model, "norm-no-plus1", LINE) == pytest.approx(900, rel=0.05)


def test_with_the_scale_twice_a_token_is_followed_by_itself(model):
    ids = np.array(model.tokenizer.encode(LINE))
    assert np.mean(wrong_logits(model, "embed-scale-twice", ids).argmax(axis=-1) == ids) > 0.9


def test_rotations():
    assert 20 / (2 * math.pi) // 1 == 3
    assert round(255 * 10_000 ** (-30 / 32), 3) == 0.045
    turned = [np.count_nonzero(2 * math.pi * 10 ** (e * np.arange(128) / 128) <= 8192) for e in (3, 3.5)]
    assert turned[0] == 128 > turned[1]
    for base, half in ((1e4, 64), (1e7, 1000)):
        scores = rope_cos_sin(range(0, 8193, 16), 256, base, 1, np.float64)[0].mean(axis=1)
        assert 16 * np.argmax(scores < 0.5) == pytest.approx(half, rel=0.01)


def test_undivided_scores():
    generator = np.random.default_rng(1)
    q, k = generator.standard_normal((2000, 256)), generator.standard_normal((20, 256))
    scores = q @ k.T
    seen = np.ones(scores.shape, bool)
    largest = [masked_softmax(s, seen).max(axis=-1).mean() for s in (scores, scores / 16)]
    np.testing.assert_allclose(largest, [0.92, 0.22], atol=0.02)


def test_reach():
    def layers_of(window, globals=()):
        reached = np.eye(300, dtype=bool)
        for layer in range(8):
            reached = attention_mask(range(300), range(300), None if layer in globals else window) @ reached
            yield reached[-1].sum()

    assert list(layers_of(64))[3] == 253
    assert list(layers_of(16))[-1] < 128 <= list(layers_of(17))[-1] == 129
    assert list(layers_of(1, globals=[5]))[-1] == 300


def test_caps():
    assert soft_cap(np.array([50.0]), 50.0)[0] == pytest.approx(38, abs=0.1)

    def gradient(cap):
        capped = soft_cap(300 * np.array([1.0, 0.6, 0.2, -0.3, -1.0]), cap)
        back = masked_softmax_backward(np.eye(5)[1], masked_softmax(capped[None], np.ones((1, 5), bool))[0])
        return np.linalg.norm(soft_cap_backward(back, capped, cap))

    size = {cap: gradient(float(cap)) for cap in range(5, 101, 5)}
    assert 0.5e-11 < size[5] < 5e-11
    assert 0.5e-3 < size[100] < 2e-3
    assert max(size, key=size.get) == 75


def test_what_top_p_leaves(model):
    logits = model.logits(model.tokenizer.encode("I thank you, my"))[-1]
    assert [len(Sampling(t, top_p=0.7).distribution(logits)[0]) for t in (0.5, 1.0, 2.0)] == [1, 30, 374]


def test_how_much_faster_four_bits_can_be():
    config = RELEASED["gemma-2-2b"]

    def bytes_of(format, length):
        return weight_bytes(config, format) + cache_bytes(config, length)

    assert weight_bytes(config, "float32") / weight_bytes(config, "int4") == pytest.approx(7.1, abs=0.05)
    assert 6 < bytes_of("float32", 1000) / bytes_of("int4", 1000) < 7


def test_bits_that_groups_save(model):
    W = model.weights["model.layers.0.mlp.down_proj.weight"]
    row = W[48, :96].copy()
    row[48] = 20 * W[48].std()

    def error(bits, group):
        steps = np.repeat([np.abs(part).max() for part in row.reshape(-1, group)], group) / (2 ** (bits - 1) - 1)
        return np.linalg.norm(np.delete(steps * np.rint(row / steps) - row, 48)) / np.linalg.norm(np.delete(row, 48))

    needed = [next(bits for bits in range(2, 9) if error(bits, group) < 0.2) for group in (96, 32, 8)]
    assert needed == [6, 5, 4]
    assert [round(bits + 16 / group, 2) for bits, group in zip(needed, (96, 32, 8), strict=True)] == [6.17, 5.5, 6.0]

"""The references of the harder exercises obey the laws that the tutorials state."""

import numpy as np
import pytest
from support import check
from support.exercises import backward_by_hand, cache_and_generation, gemma_1_2_and_3, local_and_global_layers
from support.exercises import quantization as quantizing

import gemma_np
from gemma_np.model.attention_mask import attention_mask
from gemma_np.model.rope import rope_cos_sin
from tests.support.tolerances import assert_close

SEEDS = range(3)


def cases(exercise):
    return [case for seed in SEEDS for case in exercise.cases(np.random.default_rng(seed)).values()]


def test_each_query_of_a_chunk_sees_a_whole_window():
    mask = local_and_global_layers.CHUNK_MASK.reference
    for start, length, window in cases(local_and_global_layers.CHUNK_MASK):
        seen = mask(start, length, window).sum(axis=1)
        assert seen.tolist() == [min(position + 1, window) for position in range(start, start + length)]


def test_what_the_new_tokens_see_is_what_they_would_see_in_the_whole_text():
    for ring, length, new in cases(cache_and_generation.APPEND):
        slots, end = len(ring), length + len(new)
        seen, after = cache_and_generation.APPEND.reference(ring, length, new)
        visible = attention_mask(range(length, end), range(end), slots).any(axis=0)
        whole = np.full((end, 2), np.nan)  # those that nothing holds any more
        for position in range(max(0, length - slots), length):
            whole[position] = ring[position % slots]
        whole[length:] = new
        assert np.array_equal(seen, whole[visible])
        for position in range(max(0, end - slots), end):
            assert np.array_equal(after[position % slots], whole[position])


@pytest.mark.parametrize("mistaken", cache_and_generation.APPEND.mistakes)
def test_appending_its_solution_and_its_mistakes(mistaken):
    exercise = cache_and_generation.APPEND

    def append(ring, length, new):
        before = np.arange(max(0, length + 1 - len(ring)), length)
        after = ring.copy()
        for position, key in enumerate(new, start=length):
            after[position % len(ring)] = key
        return [np.concatenate([ring[before % len(ring)], new]), after]

    for seed in SEEDS:
        assert check(append, exercise, seed).right
        assert check(exercise.mistakes[mistaken], exercise, seed).message.endswith(mistaken)


def test_normed_scores_are_those_of_the_bundled_gemma_3():
    model = gemma_np.load("shakespeare-gemma3", dtype="float64")
    config, ids = model.config, model.tokenizer.encode("Good night, good night")
    record = model.trace(ids)
    group = config.num_attention_heads // config.num_key_value_heads
    for layer in range(config.num_hidden_layers):
        part = f"layers.{layer}.self_attn"
        weights = [model.weights[f"model.{part}.{name}_norm.weight"] for name in "qk"]
        rotation = rope_cos_sin(range(len(ids)), config.head_dim, *config.rope(layer), np.float64)
        k = np.repeat(record[f"{part}.k"], group, axis=0)
        found = gemma_1_2_and_3.QK_NORM.reference(
            record[f"{part}.q"], k, *weights, *rotation, config.query_pre_attn_scalar
        )
        assert_close(found, record[f"{part}.scores"], "model", name=part)


def by_cholesky(weight, H):
    factor, left, numbers = np.linalg.cholesky(np.linalg.inv(H)).T, weight.copy(), np.empty_like(weight)
    for c in range(len(H)):
        numbers[:, c] = np.rint(left[:, c])
        left[:, c + 1 :] -= np.outer((left[:, c] - numbers[:, c]) / factor[c, c], factor[c, c + 1 :])
    return numbers


def by_least_squares(weight, H):
    left, numbers = weight.copy(), np.empty_like(weight)
    for c in range(len(H)):
        numbers[:, c] = np.rint(left[:, c])
        left[:, c + 1 :] += np.outer(left[:, c] - numbers[:, c], np.linalg.solve(H[c + 1 :, c + 1 :], H[c + 1 :, c]))
    return numbers.astype(int).tolist()


@pytest.mark.parametrize("answer", [by_cholesky, by_least_squares])
def test_gptq_in_any_form_is_right(answer):
    for seed in SEEDS:
        assert check(answer, quantizing.GPTQ, seed).right


def test_gptq_by_hand_has_the_errors_that_the_tutorial_tells():
    weight, H = quantizing.GPTQ.cases(np.random.default_rng(0))["a 3x3 by hand"]
    found = quantizing.GPTQ.reference(weight, H)
    assert found[0].tolist() == [0, 1, 0]
    for rounded, error in ((found[0], 0.28), (np.rint(weight[0]), 3.68)):
        np.testing.assert_allclose((rounded - weight[0]) @ H @ (rounded - weight[0]), error)


def test_the_gradient_of_the_block_is_the_measured_one():
    exercise = backward_by_hand.BLOCK
    generator = np.random.default_rng(0)
    dy, x, record, back = exercise.cases(generator)["several tokens"]
    along, step = generator.standard_normal(x.shape), 1e-5
    ahead, behind = (
        backward_by_hand.block(x + move * along, back.weights, back.config, back.layer) for move in (step, -step)
    )
    measured = (dy * (ahead - behind)).sum() / (2 * step)
    np.testing.assert_allclose((exercise.reference(dy, x, record, back) * along).sum(), measured, rtol=1e-6)

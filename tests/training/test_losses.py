"""The losses and their gradients: finite differences, identities, very large logits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np.model.log_probs import log_softmax
from gemma_np.training import losses
from gemma_np.training.losses import TopK
from tests.support.finite_differences import assert_gradient
from tests.support.strategies import batches, normal, seeds, sizes
from tests.support.tolerances import assert_close

vocabularies = st.integers(2, 9)

DIVERGENCES = {
    "forward KL": losses.forward_kl,
    "reverse KL": losses.reverse_kl,
    "js 0.1": lambda logits, teacher: losses.jensen_shannon(logits, teacher, 0.1),
    "js 0.9": lambda logits, teacher: losses.jensen_shannon(logits, teacher, 0.9),
    "cross-entropy": losses.soft_cross_entropy,
    "cross-entropy at 3": lambda logits, teacher: losses.soft_cross_entropy(logits, teacher, 3.0),
}
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)


def softmax(x):
    return np.exp(log_softmax(x))


def top_k_of(logits, k):
    """The k most likely tokens of softmax(logits)."""
    probs = softmax(logits)
    ids = np.argsort(-probs, axis=-1)[..., :k]
    return TopK(ids, np.take_along_axis(probs, ids, axis=-1))


@given(batches, sizes, vocabularies, seeds)
def test_cross_entropy(batch, T, V, seed):
    logits, targets = 3 * normal(seed, *batch, T, V), np.random.default_rng(seed).integers(0, V, (*batch, T))
    loss, dlogits = losses.cross_entropy(logits, targets)
    expected = -np.log(softmax(logits).reshape(-1, V)[np.arange(targets.size), targets.ravel()]).reshape(targets.shape)
    assert_close(loss, expected, "operation")
    assert_gradient(lambda x: losses.cross_entropy(x, targets)[0].sum(), (logits,), (dlogits,))


@every_divergence
@given(batches, sizes, vocabularies, seeds)
def test_gradients_of_divergences(divergence, batch, T, V, seed):
    logits, teacher = 2 * normal(seed, *batch, T, V), 2 * normal(seed + 1, *batch, T, V)
    _, dlogits = divergence(logits, teacher)
    assert_gradient(lambda x: divergence(x, teacher)[0].sum(), (logits,), (dlogits,))


@given(batches, sizes, vocabularies, seeds, st.data())
def test_gradient_of_top_k(batch, T, V, seed, data):
    k = data.draw(st.integers(1, V - 1))
    logits, teacher = 2 * normal(seed, *batch, T, V), top_k_of(normal(seed + 1, *batch, T, V), k)
    _, dlogits = losses.soft_cross_entropy_top_k(logits, teacher)
    assert_gradient(lambda x: losses.soft_cross_entropy_top_k(x, teacher)[0].sum(), (logits,), (dlogits,))


@given(sizes, vocabularies, seeds)
def test_top_k_of_all_but_one_token_is_the_whole_distribution(T, V, seed):
    logits, teacher = normal(seed, T, V), normal(seed + 1, T, V)
    loss, dlogits = losses.soft_cross_entropy_top_k(logits, top_k_of(teacher, V - 1))
    expected, dexpected = losses.soft_cross_entropy(logits, teacher)
    np.testing.assert_allclose(loss, expected, rtol=1e-10)
    np.testing.assert_allclose(dlogits, dexpected, atol=1e-12)


@every_divergence
@given(sizes, vocabularies, seeds)
def test_a_student_equal_to_its_teacher_has_no_gradient(divergence, T, V, seed):
    logits = 2 * normal(seed, T, V)
    _, dlogits = divergence(logits, logits + 7)  # adding a constant leaves the distribution as it is
    assert np.abs(dlogits).max() < 1e-12


@given(sizes, vocabularies, seeds)
def test_divergences_are_zero_only_between_equal_distributions(T, V, seed):
    logits, teacher = normal(seed, T, V), normal(seed + 1, T, V)
    for name in ("forward KL", "reverse KL", "js 0.1", "js 0.9"):
        assert (DIVERGENCES[name](logits, teacher)[0] > 0).all()
        assert np.abs(DIVERGENCES[name](logits, logits)[0]).max() < 1e-12


@given(sizes, vocabularies, seeds)
def test_soft_cross_entropy_is_the_forward_kl_plus_the_teachers_entropy(T, V, seed):
    logits, teacher = normal(seed, T, V), normal(seed + 1, T, V)
    entropy = -(softmax(teacher) * log_softmax(teacher)).sum(axis=-1)
    assert_close(
        losses.soft_cross_entropy(logits, teacher)[0], losses.forward_kl(logits, teacher)[0] + entropy, "operation"
    )


@given(sizes, vocabularies, seeds)
def test_jensen_shannon_lies_between_forward_and_reverse_kl(T, V, seed):
    logits, teacher = normal(seed, T, V), normal(seed + 1, T, V)
    near_0, near_1 = (losses.jensen_shannon(logits, teacher, beta)[0] for beta in (1e-7, 1 - 1e-7))
    np.testing.assert_allclose(near_0 / 1e-7, losses.forward_kl(logits, teacher)[0], rtol=1e-4)
    np.testing.assert_allclose(near_1 / 1e-7, losses.reverse_kl(logits, teacher)[0], rtol=1e-4)
    half, swapped = (losses.jensen_shannon(*pair)[0] for pair in ((logits, teacher), (teacher, logits)))
    np.testing.assert_allclose(half, swapped, rtol=1e-9)


@given(seeds)
def test_temperature_keeps_the_size_of_the_gradient(seed):
    """At high temperatures it tends to the difference of the centred logits over V: hence the square in the loss."""
    logits, teacher = normal(seed, 8), normal(seed + 1, 8)
    _, dlogits = losses.soft_cross_entropy(logits, teacher, 1e4)
    expected = (logits - logits.mean() - teacher + teacher.mean()) / 8
    np.testing.assert_allclose(dlogits, expected, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("V", [3, 256_000])
def test_very_large_logits_and_vocabularies(dtype, V):
    logits, teacher = np.zeros((2, V), dtype), np.zeros((2, V), dtype)
    logits[0, 0], logits[1, 1], teacher[0, 1], teacher[1, 1] = 1e4, -1e4, 1e4, 1e4
    top = TopK(np.array([[1], [1]]), np.array([[1.0], [1.0]], dtype))
    results = [divergence(logits, teacher) for divergence in DIVERGENCES.values()]
    results += [losses.cross_entropy(logits, np.array([1, 1])), losses.soft_cross_entropy_top_k(logits, top)]
    for loss, dlogits in results:
        assert loss.dtype == dlogits.dtype == dtype
        assert np.isfinite(loss).all()
        assert np.isfinite(dlogits).all()
    np.testing.assert_allclose(results[0][0], [1e4, 1e4 + np.log(V - 1)], rtol=1e-5)


@given(sizes, vocabularies, seeds)
def test_masked_positions_do_not_count(T, V, seed):
    generator = np.random.default_rng(seed)
    logits, targets = normal(seed, 2, T, V), generator.integers(0, V, (2, T))
    mask = generator.random((2, T)) < 0.5
    mask[0, 0] = True
    each, deach = losses.cross_entropy(logits, targets)
    loss, dlogits = losses.masked_mean(each, deach, mask)
    assert loss == pytest.approx(each[mask].mean())
    np.testing.assert_allclose(dlogits[mask], deach[mask] / mask.sum(), rtol=1e-12)
    assert (dlogits[~mask] == 0).all()


@given(sizes, vocabularies, seeds, st.booleans())
def test_parts_divided_by_the_targets_of_the_whole_add_up_to_it(T, V, seed, masked):
    """num_targets: with and without a mask, each part may have another number of positions that count."""
    generator = np.random.default_rng(seed)
    each, deach = normal(seed, 3, T), normal(seed + 1, 3, T, V)
    mask = generator.random((3, T)) < 0.5 if masked else None
    count = int(mask.sum()) if masked else each.size
    loss, dlogits = losses.masked_mean(each, deach, mask)
    parts = [slice(0, 1), slice(1, 3)]
    shares = [
        losses.masked_mean(each[part], deach[part], mask[part] if masked else None, num_targets=max(count, 1))
        for part in parts
    ]
    assert sum(share for share, _ in shares) == pytest.approx(loss)
    assert (np.concatenate([dshare for _, dshare in shares]) == dlogits).all()


def test_an_empty_mask_has_no_loss():
    loss, dlogits = losses.masked_mean(np.ones(3), np.ones((3, 2)), np.zeros(3, bool))
    assert loss == 0
    assert (dlogits == 0).all()


def test_without_a_mask_every_position_counts():
    loss, dlogits = losses.masked_mean(np.array([1.0, 3.0]), np.ones((2, 5)))
    assert loss == 2
    assert (dlogits == 0.5).all()

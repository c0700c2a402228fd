"""Perplexity of long texts: every token is scored once, with the context that the window gives it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import GemmaError
from gemma_np.evaluation.perplexity import TextLoss, sliding_losses, token_losses
from tests.support import tiny
from tests.support.strategies import random_ids, random_weights
from tests.support.tolerances import assert_close

CONFIG, BOS = tiny.config(), 2
WEIGHTS = random_weights(CONFIG, 0, np.float64)


@given(st.integers(1, 40), st.integers(2, 20), st.data())
def test_each_token_is_scored_once_in_its_window(length, context, data):
    """Against a window for every single token, from the definition."""
    stride = data.draw(st.integers(1, context - 1))
    ids = random_ids(CONFIG, 0, length)
    found = sliding_losses(ids, BOS, WEIGHTS, CONFIG, context=context, stride=stride)
    size = context - 1
    for n in range(length):
        end = min(size, length)
        while end <= n:
            end = min(end + stride, length)
        window = [BOS, *ids[max(0, end - size) : end]]
        index = n - max(0, end - size)
        assert_close(found[n], token_losses(window, WEIGHTS, CONFIG)[index], "model", f"token {n}")


def test_a_text_that_fits_is_one_window_for_every_stride():
    ids = random_ids(CONFIG, 0, 15)
    whole = token_losses([BOS, *ids], WEIGHTS, CONFIG)
    for stride in (1, 7, 15):
        assert_close(sliding_losses(ids, BOS, WEIGHTS, CONFIG, context=16, stride=stride), whole, "model")


def test_two_documents_of_one_window_each_have_the_mean_of_both():
    """Each document fills exactly one window, so the windows are the same together and apart."""
    one, other = random_ids(CONFIG, 0, 9), random_ids(CONFIG, 1, 9)
    both = sliding_losses(np.concatenate([one, other]), BOS, WEIGHTS, CONFIG, context=10)
    apart = [sliding_losses(ids, BOS, WEIGHTS, CONFIG, context=10) for ids in (one, other)]
    assert_close(both.mean(), np.concatenate(apart).mean(), "model")


def test_units():
    loss = TextLoss(nats=10 * math.log(2), tokens=5, bytes=20)
    assert (loss.perplexity, loss.bits_per_token, loss.bits_per_byte) == pytest.approx((4, 2, 0.5))


def test_bytes_are_counted_in_utf_8():
    model = tiny.gemma()
    assert model.text_loss("Über").bytes == 5


@pytest.mark.parametrize(
    ("context", "stride", "message"),
    [
        (1, None, "context: 1, expected 2 to 64"),
        (65, None, "context: 65, expected 2 to 64"),
        (10, 0, "stride: 0, expected 1 to context - 1 = 9"),
        (10, 10, "stride: 10, expected 1 to context - 1 = 9"),
    ],
)
def test_windows_out_of_range_are_refused(context, stride, message):
    with pytest.raises(GemmaError, match=message):
        sliding_losses([5, 6], BOS, WEIGHTS, CONFIG, context=context, stride=stride)


@pytest.mark.framework
def test_the_framework_gives_the_same_loss(tmp_path):
    """Windows of 32 that move by 16, as the framework does it: the labels of scored tokens are -100."""
    import torch
    import transformers

    model = tiny.gemma()
    model.save(tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    ids = random_ids(model.config, 0, 100)
    total, scored = 0.0, 0
    while scored < 100:
        end = min(scored + (16 if scored else 31), 100)
        window = torch.tensor([[BOS, *ids[max(0, end - 31) : end]]])
        labels = window.clone()
        labels[:, : -(end - scored)] = -100
        with torch.no_grad():
            total += theirs(window, labels=labels).loss.item() * (end - scored)
        scored = end
    found = sliding_losses(ids, BOS, model.weights, model.config, context=32, stride=16).sum()
    assert_close(np.float32(found), total, "framework")

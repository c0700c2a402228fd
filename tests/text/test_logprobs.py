"""The log-probabilities of generated tokens, against the uncached model on the whole text."""

import numpy as np
import pytest

from gemma_np import GemmaError
from gemma_np.text.logprobs import Completion
from tests.support import tiny
from tests.support.tolerances import assert_close


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "top_k": 30, "seed": 1, "repetition_penalty": 1.3}])
@pytest.mark.parametrize("draft", [None, "lookup"])
def test_they_are_those_of_the_model_whatever_the_sampling(options, draft):
    model, prompt = tiny.gemma(), [2, 5, 7]
    text, tokens = model.generate(prompt, 20, logprobs=3, draft=draft, **options)
    assert text == model.generate(prompt, 20, draft=draft, **options)
    ids = [token.id for token in tokens]
    assert text == model.tokenizer.decode(ids)
    logits = model.logits([*prompt, *ids])[2:-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = np.array([token.logprob for token in tokens], np.float32)
    assert_close(found, expected[np.arange(len(ids)), ids], "model")
    for token, row in zip(tokens, expected, strict=True):
        assert token.token == model.tokenizer.piece(token.id)
        assert len(token.top_logprobs) == 3
        best = np.array([other.logprob for other in token.top_logprobs], np.float32)
        assert_close(best, -np.sort(-row)[:3], "model")
        assert all(other.top_logprobs == [] for other in token.top_logprobs)


def test_zero_alternatives_and_fewer_than_zero():
    completion = tiny.gemma().generate("The", 5, logprobs=0)
    assert isinstance(completion, Completion)
    assert [token.top_logprobs for token in completion.logprobs] == [[]] * 5
    with pytest.raises(GemmaError, match="logprobs: -1, expected 0 or more"):
        tiny.gemma().generate("The", 5, logprobs=-1)

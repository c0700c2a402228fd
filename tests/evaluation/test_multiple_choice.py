"""Multiple choice: questions, scores, accuracy, calibration."""

import json
import math

import numpy as np
import pytest

from gemma_np import GemmaError
from gemma_np.evaluation.multiple_choice import (
    SCORES,
    Answers,
    Question,
    answer_questions,
    encode_pair,
    expected_calibration_error,
    few_shot_prompt,
    read_questions,
)
from tests.support import tiny
from tests.support.tolerances import assert_close

MODEL = tiny.gemma(max_position_embeddings=400)
QUESTIONS = [
    Question("How many ships?", ("none", "eight", "eighty-nine", "none"), 0),
    Question("Where is the lamp?", ("lit", "in the tower of the sea"), 1),
]


def ask(questions, examples=()):
    return answer_questions(questions, MODEL.weights, MODEL.config, MODEL.tokenizer, examples)


def test_examples_come_with_their_answers():
    assert few_shot_prompt(QUESTIONS[1], QUESTIONS[:1]) == (
        "Question: How many ships?\nAnswer: none\n\nQuestion: Where is the lamp?\nAnswer:"
    )


def test_the_space_between_belongs_to_the_continuation():
    pair = encode_pair("The ships", " that passed", MODEL.tokenizer)
    assert pair.context + pair.continuation == tuple(MODEL.tokenizer.encode("The ships that passed"))
    assert pair == encode_pair("The ships ", "that passed", MODEL.tokenizer)


def test_scores_match_their_definitions():
    found = ask(QUESTIONS)
    for question, scores in zip(QUESTIONS, found.scores, strict=True):
        for choice, column in zip(question.choices, scores.T, strict=True):
            pair = encode_pair(few_shot_prompt(question), f" {choice}", MODEL.tokenizer)
            logits = MODEL.logits(pair.context + pair.continuation)[len(pair.context) - 1 : -1].astype(np.float64)
            log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
            raw = log_probs[np.arange(len(pair.continuation)), pair.continuation].sum()
            expected = [raw, raw / len(pair.continuation), raw / len(choice.encode())]
            assert_close(column.astype(np.float32), np.array(expected), "precision")


def test_the_order_of_choices_does_not_matter_and_equal_choices_score_the_same():
    scores = ask(QUESTIONS).scores[0]
    assert (scores[:, 0] == scores[:, 3]).all()
    reversed_ = Question("How many ships?", QUESTIONS[0].choices[::-1], 0)
    assert_close(ask([reversed_]).scores[0].astype(np.float32), scores[:, ::-1], "model")


def answers(raw, right):
    """Answers with these raw scores; the other two scores contradict them."""
    return Answers([np.outer([1, -1, -1], row) for row in raw], np.array(right))


def test_accuracy_and_its_standard_error():
    found = answers([[0, -1], [0, -1], [-1, 0], [0, -1]], [0, 0, 0, 0])
    share, error = found.accuracy()
    assert share == 0.75
    assert error == pytest.approx(np.std([1, 1, 0, 1], ddof=1) / 2)
    assert math.isnan(answers([[0, -1]], [0]).accuracy()[1])
    assert set(SCORES) == {"raw", "per token", "per byte"}


def test_calibration_by_hand():
    high, low = math.log(0.95), math.log(0.05)
    half = math.log(0.5)
    found = answers([[high, low], [high, low], [half, half - 1e-9]], [0, 1, 0])
    error, bins = expected_calibration_error(found)
    assert bins[9] == pytest.approx([2, 0.95, 0.5])
    assert bins[5] == pytest.approx([1, 0.5, 1.0], rel=1e-6)
    assert error == pytest.approx((2 * 0.45 + 1 * 0.5) / 3)


def test_the_log_probability_of_the_right_choice_by_hand():
    found = answers([[0, math.log(3)], [math.log(9), 0]], [0, 0])
    assert found.log_prob_of_right() == pytest.approx([math.log(0.25), math.log(0.9)])


def test_confident_right_answers_are_perfectly_calibrated():
    error, _ = expected_calibration_error(answers([[0, -1000]] * 5, [0] * 5))
    assert error == 0


GOOD = {"question": "Q", "choices": ["a", "b"], "answer": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[]", r"line 2: \[\], expected a JSON object"),
        (json.dumps(GOOD | {"choices": []}), r"line 2: choices: \[\], expected one or more non-empty texts"),
        (
            json.dumps(GOOD | {"choices": ["a", " "]}),
            "line 2: choices: .*, expected one or more non-empty texts",
        ),
        (json.dumps({"question": "Q", "answer": 0}), "line 2: choices: missing"),
        (json.dumps(GOOD | {"answer": 2}), "line 2: answer: 2, expected 0 to 1"),
        (json.dumps(GOOD | {"answer": -1}), "line 2: answer: -1, expected a whole number of at least 0"),
        (json.dumps(GOOD | {"answer": "b"}), 'line 2: answer: "b", expected a whole number'),
        (json.dumps(GOOD | {"answer": True}), "line 2: answer: true, expected a whole number"),
        (json.dumps(GOOD | {"question": 5}), "line 2: question: 5, expected text"),
    ],
)
def test_invalid_lines_are_refused(line, message, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(GemmaError, match=message):
        read_questions(path)


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n\n")
    with pytest.raises(GemmaError, match="empty, expected at least one question"):
        read_questions(path)


def test_a_prompt_longer_than_the_context_is_refused():
    with pytest.raises(GemmaError, match="tokens, expected at most 400"):
        ask([Question("x" * 1000, ("a",), 0)])

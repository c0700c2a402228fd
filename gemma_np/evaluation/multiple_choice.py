"""Multiple choice: score every answer by its log-likelihood; measure accuracy and calibration.

Longer answers are less likely, so there are three scores: the log-likelihood, the log-likelihood per token, and the
log-likelihood per byte of UTF-8.

Sources: lm-evaluation-harness (the scores); Guo et al., arXiv 1706.04599 (calibration).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError, quoted
from gemma_np.evaluation.bootstrap import Difference, paired_bootstrap
from gemma_np.evaluation.likelihood import Pair, likelihoods
from gemma_np.json_input import TEXT, list_of, object_of, read_json_lines, whole_number
from gemma_np.mpi import Ranks
from gemma_np.text.tokenizer import Tokenizer
from gemma_np.weights.formats import Weights

SCORES = ("raw", "per token", "per byte")
BINS = 10


_QUESTION = object_of({"question": TEXT, "choices": list_of(TEXT), "answer": whole_number(0)})


@dataclass(frozen=True)
class Question:
    """One line of a file: {"question": "...", "choices": ["...", ...], "answer": 0}"""

    question: str
    choices: tuple[str, ...]
    answer: int  # index of the right choice


def read_questions(path: Path) -> list[Question]:
    """Read the questions of a .jsonl file. Raises GemmaError, with the line number, for an invalid one."""
    questions = []
    for line, values in read_json_lines(path, _QUESTION, "a file with one question per line, as JSON"):
        choices, answer = values["choices"], values["answer"]
        if not choices or not all(choice.strip() for choice in choices):
            raise GemmaError(f"{line}: choices: {quoted(choices)}, expected one or more non-empty texts")
        if answer >= len(choices):
            raise GemmaError(f"{line}: answer: {answer}, expected 0 to {len(choices) - 1}")
        questions.append(Question(values["question"], tuple(choices), answer))
    if not questions:
        raise GemmaError(f"{path}: empty, expected at least one question")
    return questions


def few_shot_prompt(question: Question, examples: Sequence[Question] = ()) -> str:
    """Return the text before a choice: the examples with their answers, then the question."""
    solved = "".join(f"{_ask(example)} {example.choices[example.answer]}\n\n" for example in examples)
    return solved + _ask(question)


def _ask(question: Question) -> str:
    return f"Question: {question.question}\nAnswer:"


def encode_pair(context: str, continuation: str, tokenizer: Tokenizer) -> Pair:
    """Encode a context and its continuation together, and split them where the context alone ends.

    A token may begin with the space between them; spaces at the end of the context count as the continuation's.
    """
    stripped = context.rstrip()
    whole, alone = tokenizer.encode(context + continuation), tokenizer.encode(stripped)
    return Pair(tuple(alone), tuple(whole[len(alone) :]))


class Answers(NamedTuple):
    """The scores that a model gives to the choices of N questions."""

    scores: list[np.ndarray]  # of each question [3, choices]: raw, per token, per byte
    right: np.ndarray  # [N], index of the right choice

    def is_correct(self, score: str = "raw") -> np.ndarray:
        """Return whether the choice with the highest score is right: bool [N]."""
        row = SCORES.index(score)
        return np.array([scores[row].argmax() for scores in self.scores]) == self.right

    def accuracy(self, score: str = "raw") -> tuple[float, float]:
        """Return the fraction of right answers and its standard error (NaN for a single question)."""
        correct = self.is_correct(score)
        share = float(correct.mean())
        return share, math.sqrt(share * (1 - share) / (len(correct) - 1)) if len(correct) > 1 else math.nan

    def confidences(self) -> np.ndarray:
        """Return the probability, among the choices, of the one with the highest raw score: [N]."""
        return np.array([1 / np.exp(scores[0] - scores[0].max()).sum() for scores in self.scores])

    def log_prob_of_right(self) -> np.ndarray:
        """Return log P of the right choice among the choices: [N], nats."""
        return np.array([s[0][r] - np.logaddexp.reduce(s[0]) for s, r in zip(self.scores, self.right, strict=True)])


def answer_questions(
    questions: Sequence[Question],
    weights: Weights,
    config: GemmaConfig,
    tokenizer: Tokenizer,
    examples: Sequence[Question] = (),
    ranks: Ranks | None = None,
) -> Answers:
    """Score every choice of every question after the same examples; the ranks share the questions.

    Raises GemmaError when a prompt and a choice together exceed the model's context length.
    """
    pairs = [
        encode_pair(few_shot_prompt(question, examples), f" {choice}", tokenizer)
        for question in questions
        for choice in question.choices
    ]
    raw = np.array([likelihood.log_prob for likelihood in likelihoods(pairs, weights, config, ranks)])
    tokens = np.array([len(pair.continuation) for pair in pairs])
    sizes = np.array([len(choice.encode()) for question in questions for choice in question.choices])
    scores = np.stack([raw, raw / tokens, raw / sizes])
    ends = np.cumsum([len(question.choices) for question in questions])[:-1]
    return Answers(np.split(scores, ends, axis=1), np.array([question.answer for question in questions]))


def expected_calibration_error(answers: Answers) -> tuple[float, np.ndarray]:
    """Return the expected calibration error, and the ten bins of confidence behind it.

    The bins are [10, 3]: the number of answers, their mean confidence, and their accuracy.
    """
    confidences, correct = answers.confidences(), answers.is_correct()
    bins = np.zeros((BINS, 3))
    bin_of = np.minimum((confidences * BINS).astype(int), BINS - 1)
    for number in range(BINS):
        inside = bin_of == number
        if inside.any():
            bins[number] = inside.sum(), confidences[inside].mean(), correct[inside].mean()
    error = (bins[:, 0] * np.abs(bins[:, 1] - bins[:, 2])).sum() / len(confidences)
    return float(error), bins


def summarize(answers: Answers) -> dict[str, dict[str, float]]:
    """Return the value of each measure, and its standard error where it has one."""
    summary = {}
    for score in SCORES:
        value, error = answers.accuracy(score)
        summary[f"accuracy, {score}"] = {"value": value} | ({} if math.isnan(error) else {"standard error": error})
    summary["log P of the right answer"] = {"value": float(answers.log_prob_of_right().mean())}
    summary["expected calibration error"] = {"value": expected_calibration_error(answers)[0]}
    return summary


def compare_answers(first: Answers, second: Answers) -> dict[str, Difference]:
    """Return how two models differ on the same questions, in accuracy and in log P of the right answer (nats)."""
    return {
        "right answers": paired_bootstrap(first.is_correct(), second.is_correct()),
        "log P of the right answer": paired_bootstrap(first.log_prob_of_right(), second.log_prob_of_right()),
    }

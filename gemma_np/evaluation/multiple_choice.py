"""Multiple choice: which answer a model finds likeliest, how often it is right, and how well it knows that.

Answers differ in length, and longer ones are less likely. So there are three scores: the log-likelihood as it is, by
token, and by byte of UTF-8.

Sources: lm-evaluation-harness for the scores; Guo et al., arXiv 1706.04599, for calibration.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.evaluation.likelihood import Pair, likelihoods
from gemma_np.text.tokenizer import Tokenizer
from gemma_np.weights.formats import Weights

SCORES = ("raw", "by token", "by byte")
BINS = 10


@dataclass(frozen=True)
class Question:
    """One line of a file: {"question": "...", "choices": ["...", ...], "answer": 0}"""

    question: str
    choices: tuple[str, ...]
    answer: int  # which of the choices is right, from 0 on


def read_questions(path: Path) -> list[Question]:
    """The questions of a .jsonl file. Raises GemmaError, with the line's number, for whatever is wrong with one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GemmaError(f"{path}: {error}, expected a file of questions, one JSON object a line") from None
    questions = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                questions.append(_question(json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise GemmaError(f"{path}, line {number}: {error}") from None
    if not questions:
        raise GemmaError(f"{path}: empty, expected at least one question")
    return questions


def _question(values: Any) -> Question:
    if not isinstance(values, dict):
        raise GemmaError(f"{type(values).__name__}, expected a JSON object")
    for name, kind in (("question", str), ("choices", list), ("answer", int)):
        if name not in values:
            raise GemmaError(f"{name}: missing")
        if not isinstance(values[name], kind) or isinstance(values[name], bool):
            raise GemmaError(f"{name}: {values[name]!r}, expected {'a list' if kind is list else f'{kind.__name__}'}")
    choices, answer = values["choices"], values["answer"]
    if not choices or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise GemmaError(f"choices: {choices!r}, expected at least one text, none of them empty")
    if not 0 <= answer < len(choices):
        raise GemmaError(f"answer: {answer}, expected 0 to {len(choices) - 1}")
    return Question(values["question"], tuple(choices), answer)


def prompt(question: Question, examples: Sequence[Question] = ()) -> str:
    """What the model reads before a choice: the examples with their answers, and the question without."""
    solved = "".join(f"{_ask(example)} {example.choices[example.answer]}\n\n" for example in examples)
    return solved + _ask(question)


def _ask(question: Question) -> str:
    return f"Question: {question.question}\nAnswer:"


def encode_pair(context: str, continuation: str, tokenizer: Tokenizer) -> Pair:
    """Tokens of context and continuation. They are encoded together and parted where the context alone ends, since a
    token may begin with the space between them; spaces at the end of the context go to the continuation."""
    stripped = context.rstrip()
    whole, alone = tokenizer.encode(context + continuation), tokenizer.encode(stripped)
    return Pair(tuple(alone), tuple(whole[len(alone) :]))


class Answers(NamedTuple):
    """What a model makes of N questions."""

    scores: list[np.ndarray]  # of each question [3, choices]: raw, by token, by byte
    right: np.ndarray  # [N], which choice is right

    def is_correct(self, score: str = "raw") -> np.ndarray:
        """Whether the choice of the highest score is right: bool [N]."""
        row = SCORES.index(score)
        return np.array([scores[row].argmax() for scores in self.scores]) == self.right

    def accuracy(self, score: str = "raw") -> tuple[float, float]:
        """The share of right answers, and its standard error."""
        correct = self.is_correct(score)
        share = float(correct.mean())
        return share, math.sqrt(share * (1 - share) / (len(correct) - 1)) if len(correct) > 1 else math.nan

    def confidences(self) -> np.ndarray:
        """How sure the model is of the choice of the highest raw score, among the choices: [N]."""
        return np.array([1 / np.exp(scores[0] - scores[0].max()).sum() for scores in self.scores])

    def log_prob_of_right(self) -> np.ndarray:
        """log P of the right choice among the choices, [N] nats: finer than right or wrong."""
        return np.array([s[0][r] - np.logaddexp.reduce(s[0]) for s, r in zip(self.scores, self.right, strict=True)])


def answer(
    questions: Sequence[Question],
    weights: Weights,
    config: GemmaConfig,
    tokenizer: Tokenizer,
    examples: Sequence[Question] = (),
) -> Answers:
    """Score every choice of every question after the same examples.

    Raises GemmaError when a prompt and a choice are longer than the model can read.
    """
    pairs = [
        encode_pair(prompt(question, examples), f" {choice}", tokenizer)
        for question in questions
        for choice in question.choices
    ]
    raw = np.array([likelihood.log_prob for likelihood in likelihoods(pairs, weights, config)])
    tokens = np.array([len(pair.continuation) for pair in pairs])
    sizes = np.array([len(choice.encode()) for question in questions for choice in question.choices])
    scores = np.stack([raw, raw / tokens, raw / sizes])
    ends = np.cumsum([len(question.choices) for question in questions])[:-1]
    return Answers(np.split(scores, ends, axis=1), np.array([question.answer for question in questions]))


def calibration(answers: Answers) -> tuple[float, np.ndarray]:
    """The expected calibration error, and of each of ten bins of confidence: how many answers, their mean confidence,
    their accuracy, [10, 3]."""
    confidences, correct = answers.confidences(), answers.is_correct()
    bins = np.zeros((BINS, 3))
    places = np.minimum((confidences * BINS).astype(int), BINS - 1)
    for place in range(BINS):
        inside = places == place
        if inside.any():
            bins[place] = inside.sum(), confidences[inside].mean(), correct[inside].mean()
    error = (bins[:, 0] * np.abs(bins[:, 1] - bins[:, 2])).sum() / len(confidences)
    return float(error), bins

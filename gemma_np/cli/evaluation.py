"""The commands that measure what a model knows, one function each: evaluate, lm-eval.

Each raises GemmaError for what it cannot do, in the one line that `gemma-np` then prints.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from gemma_np.errors import GemmaError
from gemma_np.evaluation.bootstrap import Difference, paired_bootstrap
from gemma_np.evaluation.multiple_choice import SCORES, Answers, Question, answer, calibration, read_questions
from gemma_np.evaluation.plots import plot_calibration, plot_differences
from gemma_np.gemma import load

_WIDTH = 28


def evaluate(options: argparse.Namespace) -> None:
    """Let a model, or two, answer questions by choosing the likeliest of several texts."""
    questions = read_questions(Path(options.file))
    examples, asked = questions[: options.shots], questions[options.shots :]
    if not asked:
        raise GemmaError(f"{options.file}: {len(questions)} questions, expected more than the {options.shots} examples")
    names = options.compare or [options.model]
    found = [_answers(name, asked, examples) for name in names]
    differences = _differences(*found) if options.compare else {}
    if options.json:
        results = {name: _figures(answers) for name, answers in zip(names, found, strict=True)}
        told = {what: {**d._asdict(), "draws": None} for what, d in differences.items()}
        print(json.dumps({"questions": len(asked), "models": results, "differences": told}, indent=2))
    else:
        _print_table(names, found, differences)
    if options.plot and options.compare:
        plot_differences(differences, (names[0], names[1]), Path(options.plot))
    elif options.plot:
        error, bins = calibration(found[0])
        plot_calibration(bins, error, Path(options.plot))


def lm_eval(options: argparse.Namespace) -> None:
    """Run lm-evaluation-harness, to which --model gemma_np is known; its own arguments follow."""
    try:
        from lm_eval.__main__ import cli_evaluate

        import gemma_np.integrations.lm_eval  # noqa: F401 (importing it makes the model known)
    except ImportError as error:
        raise GemmaError(f'lm-eval: {error}; pip install "gemma-np[evaluation]" brings it') from None
    sys.argv = ["lm_eval", *options.arguments]
    cli_evaluate()


def _answers(name: str, questions: list[Question], examples: list[Question]) -> Answers:
    model = load(name)
    if model.tokenizer is None:
        raise GemmaError(f"{name}: no tokenizer.model, expected one to read the questions with")
    return answer(questions, model.weights, model.config, model.tokenizer, examples)


def _differences(first: Answers, second: Answers) -> dict[str, Difference]:
    """What differs between two models that answered the same questions."""
    return {
        "right answers": paired_bootstrap(first.is_correct(), second.is_correct()),
        "log P of the right answer": paired_bootstrap(first.log_prob_of_right(), second.log_prob_of_right()),
    }


def _figures(answers: Answers) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for score in SCORES:
        share, error = answers.accuracy(score)
        figures[f"accuracy, {score}"] = {"value": share, "standard error": None if math.isnan(error) else error}
    figures["log P of the right answer"] = {"value": float(answers.log_prob_of_right().mean())}
    figures["expected calibration error"] = {"value": calibration(answers)[0]}
    return figures


def _print_table(names: list[str], found: list[Answers], differences: dict[str, Difference]) -> None:
    print(f"{f'{len(found[0].right)} questions':{_WIDTH}}" + "".join(f"{Path(name).name:>20}" for name in names))
    tables = [_figures(answers) for answers in found]
    for what in tables[0]:
        cells = []
        for table in tables:
            value, error = table[what]["value"], table[what].get("standard error")
            cells.append(f"{value:.3f} \u00b1 {error:.3f}" if error is not None else f"{value:.3f}")
        print(f"{what:{_WIDTH}}" + "".join(f"{cell:>20}" for cell in cells))
    for what, d in differences.items():
        verdict = "more than chance" if d.is_more_than_chance else "no more than chance"
        print(f"\n{what}: {d.mean:+.4f} (95 %: {d.low:+.4f} to {d.high:+.4f}), p = {d.p:.3f}: {verdict}")

"""The commands that evaluate: evaluate, lm-eval.

Each raises GemmaError for bad input, as one line that `gemma-np` prints.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path

from gemma_np.cli.arguments import Command, add_model
from gemma_np.cli.options import add_number
from gemma_np.cli.outputs import add_force, report_written
from gemma_np.errors import GemmaError
from gemma_np.evaluation.bootstrap import Difference
from gemma_np.evaluation.multiple_choice import (
    Answers,
    answer_questions,
    compare_answers,
    expected_calibration_error,
    read_questions,
    summarize,
)
from gemma_np.evaluation.plots import plot_calibration, plot_differences
from gemma_np.gemma import load
from gemma_np.mpi import Ranks

_WIDTH = 28


def add_commands(command: Command) -> None:
    """Register the commands of this group."""
    sub = command(
        evaluate,
        "gemma-np evaluate tutorials/questions.jsonl --model google/gemma-2-2b --num-fewshot 5 --plot calibration.png",
        "gemma-np evaluate tutorials/questions.jsonl --compare google/gemma-2-2b ./gemma-2-2b-int4",
        "mpiexec -n 4 gemma-np evaluate tutorials/questions.jsonl --model google/gemma-2-2b",
        shares_work=True,
    )
    form = 'one JSON object per line: {"question": TEXT, "choices": [TEXT, ...], "answer": INDEX}, counted from 0'
    sub.add_argument("file", metavar="FILE", help=form)
    add_model(sub)
    sub.add_argument("--compare", metavar=("A", "B"), nargs=2, help="compare two models, with a significance test")
    add_number(sub, "--num-fewshot", "use the first N questions as examples", 0)
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument("--plot", metavar="FILE", help="plot the calibration or, with --compare, the differences")
    add_force(sub)

    sub = command(
        lm_eval,
        "gemma-np lm-eval --model gemma_np --model_args pretrained=google/gemma-2-2b --tasks mmlu --num_fewshot 5",
        "gemma-np lm-eval --model gemma_np --model_args pretrained=google/gemma-2-2b --tasks mbpp "
        "--confirm_run_unsafe_code",
        "mpiexec -n 4 gemma-np lm-eval --model gemma_np --model_args pretrained=google/gemma-2-2b --tasks mmlu",
        shares_work=True,
    )
    sub.prefix_chars = "+"  # arguments that begin with a dash are passed on to lm_eval
    sub.add_argument("arguments", metavar="...", nargs="*", help="arguments of lm_eval")


def evaluate(options: argparse.Namespace) -> None:
    """Evaluate one or two models on multiple-choice questions."""
    questions = read_questions(Path(options.file))
    examples, asked = questions[: options.num_fewshot], questions[options.num_fewshot :]
    if not asked:
        count = f"{len(questions)} questions, expected more than the {options.num_fewshot} examples"
        raise GemmaError(f"{options.file}: {count}")
    names = options.compare or [options.model]
    answers = []
    for name in names:
        model = load(name)
        tokenizer = model.require_tokenizer()
        answers.append(answer_questions(asked, model.weights, model.config, tokenizer, examples, options.ranks))
    if options.ranks.rank:
        return
    differences = compare_answers(*answers) if options.compare else {}
    if options.json:
        results = {name: summarize(each) for name, each in zip(names, answers, strict=True)}
        summary = {what: {k: v for k, v in d._asdict().items() if k != "resampled"} for what, d in differences.items()}
        print(json.dumps({"questions": len(asked), "models": results, "differences": summary}, indent=2))
    else:
        _print_table(names, answers, differences)
    if options.plot and options.compare:
        plot_differences(differences, (names[0], names[1]), Path(options.plot))
    elif options.plot:
        error, bins = expected_calibration_error(answers[0])
        plot_calibration(bins, error, Path(options.plot))
    if options.plot:
        report_written(options.plot)


def lm_eval(options: argparse.Namespace) -> None:
    """Run lm-evaluation-harness; its arguments follow, with --model gemma_np."""
    if options.ranks.size > 1 and {"--use_cache", "-c"} & set(options.arguments):
        raise GemmaError("--use_cache: given with several ranks, expected one process for it")
    logging.disable(logging.NOTSET)  # the harness says in its log what it does
    os.environ["LOCAL_RANK"] = str(options.ranks.rank)  # the harness writes its results where this is 0
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it imports transformers, which has warnings of its own
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # for its bars; ours become lines
    arguments = sys.argv
    sys.argv = ["lm_eval", *options.arguments]
    try:
        with _silence() if options.ranks.rank else nullcontext():
            _run_harness(options.ranks)
    finally:
        sys.argv = arguments


def _run_harness(ranks: Ranks) -> None:
    """Run the harness with the arguments in sys.argv. Raises GemmaError when it is not installed."""
    try:
        from lm_eval.__main__ import cli_evaluate

        from gemma_np.integrations.lm_eval import GemmaHarness  # which registers the model
    except ImportError as error:
        raise GemmaError(f'lm-eval: {error}; to install it, pip install "gemma-np[evaluation]"') from None
    GemmaHarness.ranks = ranks
    cli_evaluate()


@contextmanager
def _silence() -> Iterator[None]:
    """Let the null device take what the harness prints."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _print_table(names: list[str], answers: list[Answers], differences: dict[str, Difference]) -> None:
    print(f"{f'{len(answers[0].right)} questions':{_WIDTH}}" + "".join(f"{Path(name).name:>20}" for name in names))
    summaries = [summarize(each) for each in answers]
    for measure in summaries[0]:
        cells = []
        for summary in summaries:
            value, error = summary[measure]["value"], summary[measure].get("standard error")
            cells.append(f"{value:.3f} \u00b1 {error:.3f}" if error is not None else f"{value:.3f}")
        print(f"{measure:{_WIDTH}}" + "".join(f"{cell:>20}" for cell in cells))
    for measure, d in differences.items():
        print(f"\n{measure}: {d.mean:+.4f} (95 %: {d.low:+.4f} to {d.high:+.4f}), {d.verdict}")

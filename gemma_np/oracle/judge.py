"""Judge an engine by its answers: the reference reads the engine's own tokens, and looks at each choice.

A greedy engine takes the token with the largest logit. Where the reference would take another one, its margin tells
what happened: below what rounding in the engine can do, the two were as good as equal; above it, the engine computes
something else. Since the reference reads what the engine wrote, one difference does not make all later ones.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma, load
from gemma_np.oracle.answers import Answer
from gemma_np.oracle.diagnosis import places
from gemma_np.oracle.groups import known_plans, number_plans
from gemma_np.oracle.isolation import isolated_run
from gemma_np.oracle.mistakes import CATALOGUE
from gemma_np.oracle.reading import PRECISIONS, Differences, Reading, Step
from gemma_np.progress import progress_bar
from gemma_np.text.tokenizer import Tokenizer
from gemma_np.weights.formats import Blocks, Float16

IDENTICAL, TIE_BREAK, DEFECT = "IDENTICAL", "TIE-BREAK", "DEFECT"

_MOST_CAUSES = 3
_CLEARLY = 2.0  # by which factor a cause must reduce the excess
_WELL = 20.0  # by which factor it reduces a large one: the noise of an engine with a mistake is not quite that measured
_INSTEAD = {mistake.id: f"{mistake.instead} (known as {mistake.id})" for mistake in CATALOGUE}


class Judgement(NamedTuple):
    """The verdict on one answer."""

    answer: Answer
    verdict: str  # IDENTICAL, TIE_BREAK or DEFECT
    differences: Differences
    causes: tuple[str, ...] = ()  # what explains them: ids of the catalogue, or words
    as_precise_as: str = ""  # the finest precision whose rounding explains them


def usual_precision(model: str | Path) -> str:
    """Return the precision in which engines usually run a model, from how its weights are stored.

    Of a `.gguf` file the engine is llama.cpp, which keeps keys and values in float16 even beside float32 weights.

    Raises GemmaError when the model cannot be loaded.
    """
    weights = load(model, "stored").weights.values()
    kinds = {type(weight) for weight in weights if not isinstance(weight, np.ndarray)}
    if not kinds:
        return "f16" if Path(model).suffix == ".gguf" else "f32"
    return "int8" if Blocks in kinds else "f16" if kinds == {Float16} else "bf16"


def judge(model: Gemma, answers: Iterable[Answer], precision: str = "f32") -> Iterator[Judgement]:
    """Yield a judgement for each answer; precision: one of `PRECISIONS`. Raises GemmaError for another one.

    An engine is taken to have one mistake: what explains its first defect is tried for the others.
    """
    if precision not in PRECISIONS:
        raise GemmaError(f"precision: {precision!r}, expected one of {', '.join(PRECISIONS)}")
    suspects: Sequence[str] | None = None
    for answer in answers:
        if not answer.ids:
            yield Judgement(answer, DEFECT, Differences([], []))
            continue
        reading = Reading(model, answer, precision)
        differences = reading.differences()
        if differences.excess <= 1:
            verdict = DEFECT if answer.wrong_prompt else TIE_BREAK if differences.choices else IDENTICAL
            yield Judgement(answer, verdict, differences)
            continue
        causes = _causes(reading, differences.excess, suspects)
        suspects = causes if suspects is None else suspects
        yield Judgement(answer, DEFECT, differences, causes, _sufficient_precision(reading))


def _sufficient_precision(reading: Reading) -> str:
    for coarser in PRECISIONS[PRECISIONS.index(reading.precision) + 1 :]:
        if Reading(reading.model, reading.answer, coarser).differences().excess <= 1:
            return coarser
    return ""


def _causes(reading: Reading, excess: float, suspects: Sequence[str] | None) -> tuple[str, ...]:
    """Return what explains an excess, best first: of the suspects, or of known mistakes, then of likely numbers."""
    largest = min(max(1, excess / _WELL), excess / _CLEARLY)
    known, likely = _trials(reading)
    groups = [known, likely]
    if suspects is not None:
        groups = [{cause: trial for cause, trial in (known | likely).items() if cause in suspects}]
    for group in groups:
        trials = progress_bar(group.items(), desc="trying mistakes", unit="mistakes")
        excesses = {cause: trial().excess for cause, trial in trials}
        found = sorted((cause for cause in excesses if excesses[cause] <= largest), key=excesses.__getitem__)
        if found:
            return tuple(found[:_MOST_CAUSES])
    return ()


Trials = dict[str, Callable[[], Differences]]
"""Cause -> a function that returns what differs if it is taken for the truth."""


def _trials(reading: Reading) -> tuple[Trials, Trials]:
    """Return the trials of known mistakes, and of likely numbers and masks."""
    run = isolated_run(reading.reference, {})
    known: Trials = {says: partial(_with_prompt, reading, prompt) for says, prompt in _other_prompts(reading).items()}
    known |= {id: partial(reading.planted, plan) for id, plan in known_plans(reading.reference, run).items()}
    if not reading.answer.top:  # too little to tell so many apart
        return known, {}
    likely: Trials = {
        f"{'; '.join(places(plan))}: {says}": partial(reading.planted, plan)
        for says, plan in number_plans(reading.reference, run).items()
    }
    return known, likely


def _other_prompts(reading: Reading) -> dict[str, list[int]]:
    bos, *rest = reading.answer.prompt
    if not rest or reading.model.tokenizer is None or bos != reading.model.tokenizer.bos:
        return {}
    return {"the engine does not read <bos>": rest, "the engine reads <bos> twice": [bos, bos, *rest]}


def _with_prompt(reading: Reading, prompt: list[int]) -> Differences:
    return Reading(reading.model, reading.answer._replace(prompt=prompt), reading.precision).differences()


def describe_judgement(judgement: Judgement, tokenizer: Tokenizer, window: int | None) -> list[str]:
    """Return the lines of a report about one answer; window: of local layers."""
    answer, (choices, log_probs) = judgement.answer, judgement.differences
    lines = [f"{answer.source}: {judgement.verdict} ({len(answer.ids)} tokens)"]
    if answer.wrong_prompt:
        lines.append(f"  the ids of the prompt are wrong: {answer.wrong_prompt}")
    if choices:
        step = _first(choices)
        found, expected = (tokenizer.decode([id]) or tokenizer.piece(id) for id in (step.found, step.expected))
        error = f"the engine chose {found!r}, the reference {expected!r} by {step.margin:.2g} nats"
        lines.append(f"  {_place(step, choices, answer, window)}: {error}; rounding explains {step.entitled:.2g}")
    if log_probs:
        step = log_probs[0]
        error = f"a log-probability differs by {step.margin:.2g} nats; rounding explains {step.entitled:.2g}"
        lines.append(f"  {_place(step, log_probs, answer, window)}: {error}")
    return lines


def _first(steps: Sequence[Step]) -> Step:
    """Return the first that rounding does not explain, or the first of all."""
    return next((step for step in steps if step.excess > 1), steps[0])


def _place(step: Step, steps: Sequence[Step], answer: Answer, window: int | None) -> str:
    phase = "prefill" if step.position == len(answer.prompt) else "decoding"
    past = ", past the window" if window and step.position > window else ""
    count = f"{len(steps)} tokens, first " if len(steps) > 1 else "token "
    return f"{count}{step.position} ({phase}{past})"


def describe_all(judgements: Sequence[Judgement], window: int | None) -> list[str]:
    """Return the last lines of a report: how many answers have each verdict, what explains the defects, and what none
    could have shown; window: of local layers."""
    counts = Counter(judgement.verdict for judgement in judgements)
    lines = [", ".join(f"{counts[verdict]} {verdict}" for verdict in (IDENTICAL, TIE_BREAK, DEFECT) if counts[verdict])]
    defects = [judgement for judgement in judgements if judgement.differences.excess > 1]
    causes = Counter(cause for judgement in defects for cause in judgement.causes)
    for cause, count in causes.most_common():
        lines.append(f"this explains {count} of {len(defects)}: {_INSTEAD.get(cause, cause)}")
    if defects and not causes:
        lines.append("no known mistake or likely number explains the first; gemma-np diagnose finds more, from logits")
    precisions = {judgement.as_precise_as for judgement in defects}
    if precisions and "" not in precisions:
        coarsest = max(precisions, key=PRECISIONS.index)
        lines.append(
            f"not more than rounding to {coarsest} does: if the engine computes in it, use --precision {coarsest}"
        )
    longest = max(len(judgement.answer.prompt) + len(judgement.answer.ids) for judgement in judgements)
    if window and longest <= window:
        lines.append(f"no text is longer than the window of {window} tokens: mistakes in the window would not show")
    return lines

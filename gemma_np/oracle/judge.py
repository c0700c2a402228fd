"""Judge an engine by its answers: the reference reads the engine's own tokens, and looks at each choice.

A greedy engine takes the token with the largest logit. Where the reference would take another one, its margin tells
what happened: below what rounding in the engine can do, the two were as good as equal; above it, the engine computes
something else. Since the reference reads what the engine wrote, one difference does not make all later ones.

What rounding can do is measured at each position: the reference runs again with its activations rounded as the engine's
are, and the change of its logits is the noise. The weights are those of the reference; for a quantized engine it loads
the engine's own file.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma, load
from gemma_np.model.log_probs import log_softmax
from gemma_np.oracle.answers import Answer
from gemma_np.oracle.groups import known_plans
from gemma_np.oracle.isolation import Plan, isolated_run
from gemma_np.oracle.mistakes import CATALOGUE
from gemma_np.oracle.noise import SAFETY_FACTOR, rounding_tape
from gemma_np.oracle.trace import Reference
from gemma_np.scope import Tape
from gemma_np.text.tokenizer import Tokenizer
from gemma_np.weights.formats import Blocks, Float16

IDENTICAL, TIE_BREAK, DEFECT = "IDENTICAL", "TIE-BREAK", "DEFECT"

PRECISIONS = ("f32", "f16", "bf16", "int8")
"""What an engine rounds its activations to; int8: in blocks of 32 channels, as llama.cpp for weights in blocks."""

_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_ENTITLED = {precision: SAFETY_FACTOR[dtype] for precision, dtype in _DTYPES.items()} | {"int8": 8.0}
"""The largest error that passes, in units of the measured noise."""

_TRIALS = 4
_CANDIDATES = 64
_BLOCK = 32
_READ_BY_PROJECTIONS = {"input_layernorm", "context", "pre_feedforward_layernorm", "hidden", "norm"}
_IN_CACHE = {"k_rope", "v"}
_SAYS = {mistake.id: f"{mistake.instead} (known as {mistake.id})" for mistake in CATALOGUE}


class Step(NamedTuple):
    """A place where the engine differs from the reference."""

    position: int  # of the token that it chose, in prompt and answer together
    found: int  # the engine's token
    expected: int  # the reference's
    margin: float  # by how much the reference's logit is larger; for log-probabilities, the largest difference, in nats
    entitled: float  # the largest that rounding explains

    @property
    def is_defect(self) -> bool:
        """Return whether rounding does not explain it."""
        return self.margin > self.entitled


class Differences(NamedTuple):
    """Where an answer differs from what is expected."""

    choices: list[Step]  # where the engine chose another token
    log_probs: list[Step]  # where its log-probabilities are others, by more than rounding explains

    @property
    def are_defects(self) -> bool:
        """Return whether rounding does not explain them."""
        return bool(self.log_probs) or any(step.is_defect for step in self.choices)


class Judgement(NamedTuple):
    """The verdict on one answer."""

    answer: Answer
    verdict: str  # IDENTICAL, TIE_BREAK or DEFECT
    differences: Differences
    causes: tuple[str, ...] = ()  # the known mistakes that explain the differences
    explained_by_precision: str = ""  # the finest one that would explain them


def usual_precision(model: str | Path) -> str:
    """Return the precision in which engines usually run a model, from how its weights are stored.

    Of a `.gguf` file the engine is llama.cpp, which keeps keys and values in float16 even beside float32 weights.

    Raises GemmaError when the model cannot be loaded.
    """
    kinds = {type(weight) for weight in load(model, "stored").weights.values()}
    if kinds == {np.ndarray}:
        return "f16" if Path(model).suffix == ".gguf" else "f32"
    return "int8" if Blocks in kinds else "f16" if kinds == {np.ndarray, Float16} else "bf16"


def judge(model: Gemma, answers: Iterable[Answer], precision: str = "f32") -> Iterator[Judgement]:
    """Yield a judgement for each answer; precision: one of `PRECISIONS`. Raises GemmaError for another one.

    An engine is taken to have one mistake: those that explain the first answer with a defect are tried for the others.
    """
    if precision not in PRECISIONS:
        raise GemmaError(f"precision: {precision!r}, expected one of {', '.join(PRECISIONS)}")
    suspects: Sequence[str] | None = None
    for answer in answers:
        judgement = _judge_answer(model, answer, precision, suspects)
        if judgement.differences.are_defects:
            suspects = judgement.causes
        yield judgement


def _judge_answer(model: Gemma, answer: Answer, precision: str, suspects: Sequence[str] | None) -> Judgement:
    if not answer.ids:
        return Judgement(answer, DEFECT, Differences([], []))
    reading = _Reading(model, answer)
    differences = reading.differences(precision)
    if not differences.are_defects:
        verdict = DEFECT if answer.wrong_prompt else TIE_BREAK if differences.choices else IDENTICAL
        return Judgement(answer, verdict, differences)
    coarser = PRECISIONS[PRECISIONS.index(precision) + 1 :]
    explained = next((other for other in coarser if not reading.differences(other).are_defects), "")
    return Judgement(answer, DEFECT, differences, reading.causes(precision, suspects), explained)


class _Reading:
    """The reference reads an answer: its logits at each token that the engine chose."""

    def __init__(self, model: Gemma, answer: Answer) -> None:
        self.model, self.answer = model, answer
        self.reference = Reference(model, [[*answer.prompt, *answer.ids[:-1]]])
        self.rows = slice(len(answer.prompt) - 1, None)
        self.logits = self._logits(self.reference.records())
        self._rounded: dict[str, list[np.ndarray]] = {}

    def differences(self, precision: str, planted: np.ndarray | None = None) -> Differences:
        """Return where the answer differs from these logits [T, V], or from the reference's."""
        if precision not in self._rounded:
            records = [self.reference.records(tape) for tape in _tapes(precision)]
            self._rounded[precision] = [self._logits(one) for one in records]
        expected = self.logits if planted is None else planted
        rounded = [expected + (other - self.logits) for other in self._rounded[precision]]
        factor = _ENTITLED[precision]
        return Differences(
            _other_choices(self.answer, expected, rounded, factor),
            _other_log_probs(self.answer, expected, rounded, factor),
        )

    def causes(self, precision: str, suspects: Sequence[str] | None) -> tuple[str, ...]:
        """Return those of the suspects, or of all known mistakes, that explain the answer."""
        explains = {
            says: partial(self._is_explained_by_prompt, prompt) for says, prompt in self._other_prompts().items()
        } | {
            known: partial(self._is_explained_by_plan, plan)
            for known, plan in known_plans(self.reference, isolated_run(self.reference, {})).items()
        }
        names = explains if suspects is None else suspects
        return tuple(name for name in names if name in explains and explains[name](precision))

    def _other_prompts(self) -> dict[str, list[int]]:
        bos, *rest = self.answer.prompt
        if not rest or self.model.tokenizer is None or bos != self.model.tokenizer.bos:
            return {}
        return {"<bos> is missing": rest, "<bos> stands twice": [bos, bos, *rest]}

    def _is_explained_by_prompt(self, prompt: list[int], precision: str) -> bool:
        other = _Reading(self.model, self.answer._replace(prompt=prompt))
        return not other.differences(precision).are_defects

    def _is_explained_by_plan(self, plan: Plan, precision: str) -> bool:
        logits = self._logits(isolated_run(self.reference, {}, plan).inputs)
        return bool(np.isfinite(logits).all()) and not self.differences(precision, logits).are_defects

    def _logits(self, records: Mapping[str, np.ndarray]) -> np.ndarray:
        return records.get("logits_capped", records["logits"])[self.rows]


def _tapes(precision: str) -> list[Tape]:
    """Return tapes that round as an engine of this precision may: once to the nearest number, then at random."""
    generators = [None, *(np.random.default_rng(trial) for trial in range(1, _TRIALS))]
    if precision in _DTYPES:
        return [rounding_tape(_DTYPES[precision], generator) for generator in generators]
    return [_int8_tape(generator) for generator in generators]


def _int8_tape(generator: np.random.Generator | None) -> Tape:
    """Return a tape that rounds what projections read to int8, and the cache to float16.

    With a generator, steps are up to a tenth larger, so that other numbers are rounded up. To round up or down at
    random would err more than engines do: beside a large number, they round small ones to zero.
    """

    def tape(name: str, value: np.ndarray) -> np.ndarray:
        part = name.split(".")[-1]
        if part in _IN_CACHE:
            return value.astype(np.float16).astype(np.float64)
        if part not in _READ_BY_PROJECTIONS or value.shape[-1] % _BLOCK:
            return value
        blocks = value.reshape(*value.shape[:-1], -1, _BLOCK)
        step = np.abs(blocks).max(axis=-1, keepdims=True) / 127
        if generator is not None:
            step = step * generator.uniform(1, 1.1, step.shape)
        return (np.rint(blocks / np.where(step == 0, 1, step)) * step).reshape(value.shape)

    return tape


def _noise(right: np.ndarray, rounded: Sequence[np.ndarray]) -> np.ndarray:
    """Return the noise of the difference of two logits: the largest root mean square of the trials, over the most
    likely tokens. right and rounded [T, V] -> [T]
    """
    likely = np.argsort(-right, axis=-1)[:, :_CANDIDATES]
    changes = [np.take_along_axis(other - right, likely, axis=-1) for other in rounded]
    return np.sqrt(2) * np.max([change.std(axis=-1) for change in changes], axis=0)


def _other_choices(answer: Answer, expected: np.ndarray, rounded: Sequence[np.ndarray], factor: float) -> list[Step]:
    noise = _noise(expected, rounded)
    steps = []
    for row, found in enumerate(answer.ids):
        best = int(expected[row].argmax())
        if found != best:
            margin = float(expected[row, best] - expected[row, found])
            steps.append(Step(len(answer.prompt) + row, found, best, margin, factor * float(noise[row])))
    return steps


def _other_log_probs(answer: Answer, expected: np.ndarray, rounded: Sequence[np.ndarray], factor: float) -> list[Step]:
    right = log_softmax(expected)
    changes = [log_softmax(other) - right for other in rounded]
    steps = []
    for row, top in enumerate(answer.top):
        ids = list(top)
        if ids:
            error = float(np.abs(np.array(list(top.values())) - right[row, ids]).max())
            entitled = factor * max(float(np.abs(change[row, ids]).max()) for change in changes)
            if error > entitled:
                found = max(ids, key=lambda id: top[id])
                steps.append(Step(len(answer.prompt) + row, found, int(expected[row].argmax()), error, entitled))
    return steps


def describe_judgement(judgement: Judgement, tokenizer: Tokenizer, window: int | None) -> list[str]:
    """Return the lines of a report; window: of local layers."""
    answer, (choices, log_probs) = judgement.answer, judgement.differences
    lines = [f"{answer.source}: {judgement.verdict} ({len(answer.ids)} tokens)"]
    if answer.wrong_prompt:
        lines.append(f"  the ids of the prompt are wrong: {answer.wrong_prompt}")
    for what, steps in (("chose", choices), ("log-probabilities", log_probs)):
        if steps:
            lines.append(f"  {_describe(what, steps, answer, tokenizer, window)}")
    if judgement.causes:
        lines.append(f"  explained by: {'; or '.join(_SAYS.get(cause, cause) for cause in judgement.causes)}")
    if judgement.explained_by_precision:
        lines.append(f"  explained by rounding, with --precision {judgement.explained_by_precision}")
    return lines


def _describe(what: str, steps: Sequence[Step], answer: Answer, tokenizer: Tokenizer, window: int | None) -> str:
    """Describe the first defect among steps, or the first of them, and say how many there are."""
    step = next((step for step in steps if step.is_defect), steps[0])
    phase = "prefill" if step.position == len(answer.prompt) else "decoding"
    past = ", past the window" if window and step.position > window else ""
    others = f"; so at {len(steps)} of {len(answer.ids)} tokens" if len(steps) > 1 else ""
    if what == "chose":
        found, expected = (tokenizer.decode([id]) or tokenizer.piece(id) for id in (step.found, step.expected))
        error = f"the engine chose {found!r}, the reference {expected!r}, by {step.margin:.2g}"
    else:
        error = f"a log-probability differs by {step.margin:.2g}"
    return (
        f"token {step.position} ({phase}{past}): {error} nats, of which rounding explains {step.entitled:.2g}{others}"
    )


def summary(judgements: Sequence[Judgement]) -> str:
    """Return how many answers have each verdict, in one line."""
    counts: Mapping[str, int] = {
        verdict: sum(judgement.verdict == verdict for judgement in judgements)
        for verdict in (IDENTICAL, TIE_BREAK, DEFECT)
    }
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)

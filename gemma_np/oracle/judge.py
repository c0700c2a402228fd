"""Judge an engine by its answers: the reference reads the engine's own tokens, and looks at each choice.

A greedy engine takes the token with the largest logit. Where the reference would take another one, its margin tells
what happened: below what rounding in the engine can do, the two were as good as equal; above it, the engine computes
something else. Since the reference reads what the engine wrote, one difference does not make all later ones.

What rounding can do is measured at each position: the reference runs again with its activations rounded as the engine's
are, and the change of its logits is the noise. The weights are those of the reference; for a quantized engine it loads
the engine's own file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.model.log_probs import log_softmax
from gemma_np.oracle.answers import Answer
from gemma_np.oracle.groups import known_plans
from gemma_np.oracle.isolation import isolated_run
from gemma_np.oracle.noise import rounding_tape
from gemma_np.oracle.trace import Reference
from gemma_np.scope import Tape

IDENTICAL, TIE_BREAK, DEFECT = "IDENTICAL", "TIE-BREAK", "DEFECT"

_DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
PRECISIONS = (*_DTYPES, "q8_0", "q4_0")
"""What the engine rounds its activations to; with quantized weights it is int8, in blocks of 32 channels."""

_ENTITLED = 6.0
"""The largest error that passes, in units of the measured noise."""

_TRIALS = 4
_CANDIDATES = 64
_BLOCK = 32
_READ_BY_PROJECTIONS = ("input_layernorm", "context", "pre_feedforward_layernorm", "hidden", "norm")
_IN_CACHE = ("k_rope", ".v")


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


class Judgement(NamedTuple):
    """The verdict on one answer."""

    answer: Answer
    verdict: str  # IDENTICAL, TIE_BREAK or DEFECT
    choices: list[Step]  # where the engine chose another token
    log_probs: list[Step]  # where its log-probabilities are not those of the reference, by more than rounding explains
    causes: tuple[str, ...] = ()  # the known mistakes that explain its log-probabilities


def judge(model: Gemma, answers: Sequence[Answer], precision: str = "f32") -> Iterator[Judgement]:
    """Yield a judgement for each answer; precision: one of `PRECISIONS`. Raises GemmaError for another one."""
    if precision not in PRECISIONS:
        raise GemmaError(f"precision: {precision!r}, expected one of {', '.join(PRECISIONS)}")
    for answer in answers:
        reference = Reference(model, [[*answer.prompt, *answer.ids[:-1]]])
        rows = slice(len(answer.prompt) - 1, None)
        right = _logits(reference)[rows]
        rounded = [_logits(reference, tape)[rows] for tape in _tapes(precision)]
        choices = _other_choices(answer, right, rounded)
        log_probs = _other_log_probs(answer, right, rounded)
        is_defect = bool(log_probs) or any(step.is_defect for step in choices)
        verdict = DEFECT if is_defect else TIE_BREAK if choices else IDENTICAL
        causes = _causes(reference, answer, rows, rounded) if is_defect and answer.top else ()
        yield Judgement(answer, verdict, choices, log_probs, causes)


def _logits(reference: Reference, tape: Tape | None = None) -> np.ndarray:
    records = reference.records(tape)
    return records.get("logits_capped", records["logits"])


def _tapes(precision: str) -> list[Tape]:
    """Return tapes that round as an engine of this precision may: once to the nearest number, then at random."""
    generators = [None, *(np.random.default_rng(trial) for trial in range(1, _TRIALS))]
    if precision in _DTYPES:
        return [rounding_tape(_DTYPES[precision], generator) for generator in generators]
    return [_int8_tape(generator) for generator in generators]


def _int8_tape(generator: np.random.Generator | None) -> Tape:
    """Return a tape that rounds what projections read to int8, and the cache to float16."""

    def tape(name: str, value: np.ndarray) -> np.ndarray:
        if name.endswith(_IN_CACHE):
            return value.astype(np.float16).astype(np.float64)
        if not name.endswith(_READ_BY_PROJECTIONS) or value.shape[-1] % _BLOCK:
            return value
        blocks = value.reshape(*value.shape[:-1], -1, _BLOCK)
        scale = np.abs(blocks).max(axis=-1, keepdims=True) / 127
        shift = 0.5 if generator is None else generator.random(blocks.shape)
        integers = np.floor(blocks / np.where(scale == 0, 1, scale) + shift)
        return (integers * scale).reshape(value.shape)

    return tape


def _noise(right: np.ndarray, rounded: Sequence[np.ndarray]) -> np.ndarray:
    """Return the noise of the difference of two logits: the largest root mean square of the trials, over the most
    likely tokens. right and rounded [T, V] -> [T]
    """
    likely = np.argsort(-right, axis=-1)[:, :_CANDIDATES]
    changes = [np.take_along_axis(other - right, likely, axis=-1) for other in rounded]
    return np.sqrt(2) * np.max([change.std(axis=-1) for change in changes], axis=0)


def _other_choices(answer: Answer, right: np.ndarray, rounded: Sequence[np.ndarray]) -> list[Step]:
    noise = _noise(right, rounded)
    steps = []
    for row, found in enumerate(answer.ids):
        expected = int(right[row].argmax())
        if found != expected:
            margin = float(right[row, expected] - right[row, found])
            steps.append(Step(len(answer.prompt) + row, found, expected, margin, _ENTITLED * float(noise[row])))
    return steps


def _other_log_probs(answer: Answer, right: np.ndarray, rounded: Sequence[np.ndarray]) -> list[Step]:
    expected = log_softmax(right)
    noise = [log_softmax(other) - expected for other in rounded]
    steps = []
    for row, top in enumerate(answer.top):
        ids = list(top)
        if ids:
            error = float(np.abs(np.array(list(top.values())) - expected[row, ids]).max())
            entitled = _ENTITLED * max(float(np.abs(change[row, ids]).max()) for change in noise)
            if error > entitled:
                best = max(ids, key=lambda id: top[id])
                steps.append(Step(len(answer.prompt) + row, best, int(right[row].argmax()), error, entitled))
    return steps


def _causes(reference: Reference, answer: Answer, rows: slice, rounded: Sequence[np.ndarray]) -> tuple[str, ...]:
    """Return the known mistakes that give the engine's log-probabilities when they are planted in the reference."""
    plans = known_plans(reference, isolated_run(reference, {}))
    found = []
    for known, plan in plans.items():
        inputs = isolated_run(reference, {}, plan).inputs
        planted = inputs.get("logits_capped", inputs["logits"])[rows]
        moved = [planted + (other - rounded[0]) for other in rounded]
        if np.isfinite(planted).all() and not _other_log_probs(answer, planted, moved):
            found.append(known)
    return tuple(found)


def describe_judgement(judgement: Judgement, piece: Callable[[int], str], window: int | None) -> list[str]:
    """Return the lines of a report; piece: the text of a token; window: of local layers."""
    answer = judgement.answer
    lines = [f"{answer.source}: {judgement.verdict} ({len(answer.ids)} tokens)"]
    for name, steps in (("chose", judgement.choices), ("log-probabilities", judgement.log_probs)):
        for step in steps[:1]:
            lines.append(f"  {_describe(step, name, answer, piece, window)}")
        if len(steps) > 1:
            lines.append(f"  and at {len(steps) - 1} later tokens")
    if judgement.causes:
        lines.append(f"  explained by: {'; '.join(judgement.causes)}")
    return lines


def _describe(step: Step, name: str, answer: Answer, piece: Callable[[int], str], window: int | None) -> str:
    phase = "prefill" if step.position == len(answer.prompt) else "decoding"
    past = ", past the window" if window and step.position > window else ""
    where = f"token {step.position} ({phase}{past})"
    limit = f"rounding explains {step.entitled:.2g}"
    if name == "chose":
        words = f"{piece(step.found)!r}, the reference {piece(step.expected)!r}"
        return f"{where}: the engine chose {words}, by a margin of {step.margin:.2g}; {limit}"
    return f"{where}: a log-probability differs by {step.margin:.2g} nats; {limit}"


def summary(judgements: Sequence[Judgement]) -> str:
    """Return how many answers have each verdict, in one line."""
    counts: Mapping[str, int] = {
        verdict: sum(judgement.verdict == verdict for judgement in judgements)
        for verdict in (IDENTICAL, TIE_BREAK, DEFECT)
    }
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)

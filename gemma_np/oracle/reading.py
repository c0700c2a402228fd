"""Read an engine's answer with the reference, and find where the engine chose or expected something else.

What rounding can do is measured at each position: the reference runs again with its activations rounded as the engine's
are, and the change of its logits is the noise. The weights are those of the reference; for a quantized engine it loads
the engine's own file.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from gemma_np.gemma import Gemma
from gemma_np.model.log_probs import log_softmax
from gemma_np.oracle.answers import Answer
from gemma_np.oracle.isolation import Plan, isolated_run
from gemma_np.oracle.noise import SAFETY_FACTOR, rounding_tape
from gemma_np.oracle.trace import Reference
from gemma_np.scope import Tape

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


class Step(NamedTuple):
    """A place where the engine differs from the reference."""

    position: int  # of the token that it chose, in prompt and answer together
    found: int  # the engine's token
    expected: int  # the reference's
    margin: float  # by how much the reference's logit is larger; for log-probabilities, the largest difference, in nats
    entitled: float  # the largest that rounding explains

    @property
    def excess(self) -> float:
        """Return the margin, as a multiple of the largest that rounding explains."""
        return self.margin / max(self.entitled, 1e-300)


class Differences(NamedTuple):
    """Where an answer differs from what is expected."""

    choices: list[Step]  # where the engine chose another token
    log_probs: list[Step]  # where its log-probabilities are others, by more than rounding explains

    @property
    def excess(self) -> float:
        """Return the largest margin, as a multiple of the largest that rounding explains; infinite for NaN."""
        excesses = [step.excess for step in (*self.choices, *self.log_probs)]
        return np.inf if np.isnan(excesses).any() else max(excesses, default=0.0)


class Reading:
    """The reference's logits at each token of an answer that the engine chose."""

    def __init__(self, model: Gemma, answer: Answer, precision: str) -> None:
        self.model, self.answer, self.precision = model, answer, precision
        self.reference = Reference(model, [[*answer.prompt, *answer.ids[:-1]]])
        self._logits = self._rows(self.reference.records())
        rounded = [self._rows(self.reference.records(tape)) for tape in _tapes(precision)]
        self._changes = [one - self._logits for one in rounded]
        right = log_softmax(self._logits)
        self._changes_of_log_probs = [log_softmax(one) - right for one in rounded]

    def differences(self) -> Differences:
        """Return where the answer differs from the reference."""
        return self._differences(self._logits)

    def planted(self, plan: Plan) -> Differences:
        """Return where the answer differs from a reference that computes some records as a plan says."""
        return self._differences(self._rows(isolated_run(self.reference, {}, plan).inputs))

    def _differences(self, expected: np.ndarray) -> Differences:
        return Differences(self._other_choices(expected), self._other_log_probs(expected))

    def _other_choices(self, expected: np.ndarray) -> list[Step]:
        entitled = _ENTITLED[self.precision] * self._noise(expected)
        steps = []
        for row, found in enumerate(self.answer.ids):
            best = int(expected[row].argmax())
            if found != best:
                margin = float(expected[row, best] - expected[row, found])
                steps.append(Step(len(self.answer.prompt) + row, found, best, margin, float(entitled[row])))
        return steps

    def _noise(self, expected: np.ndarray) -> np.ndarray:
        """Return the noise of the difference of two logits: the largest root mean square of the trials, over the most
        likely tokens. expected [T, V] -> [T]
        """
        likely = np.argpartition(-expected, min(_CANDIDATES, expected.shape[-1]) - 1, axis=-1)[:, :_CANDIDATES]
        changes = [np.take_along_axis(change, likely, axis=-1) for change in self._changes]
        return np.sqrt(2) * np.max([change.std(axis=-1) for change in changes], axis=0)

    def _other_log_probs(self, expected: np.ndarray) -> list[Step]:
        right = log_softmax(expected)
        steps = []
        for row, top in enumerate(self.answer.top):
            ids = list(top)
            if ids:
                error = float(np.abs(np.array(list(top.values())) - right[row, ids]).max())
                noise = max(float(np.abs(change[row, ids]).max()) for change in self._changes_of_log_probs)
                entitled = _ENTITLED[self.precision] * noise
                if not error <= entitled:
                    found, best = max(ids, key=top.__getitem__), int(expected[row].argmax())
                    steps.append(Step(len(self.answer.prompt) + row, found, best, error, entitled))
        return steps

    def _rows(self, records: Mapping[str, np.ndarray]) -> np.ndarray:
        return records.get("logits_capped", records["logits"])[len(self.answer.prompt) - 1 :]


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
            return value.astype(np.float16).astype(value.dtype)
        if part not in _READ_BY_PROJECTIONS or value.shape[-1] % _BLOCK:
            return value
        blocks = value.reshape(*value.shape[:-1], -1, _BLOCK)
        step = np.abs(blocks).max(axis=-1, keepdims=True) / 127
        if generator is not None:
            step *= generator.uniform(1, 1.1, step.shape)
        return (np.rint(blocks / np.where(step == 0, 1, step)) * step).reshape(value.shape)

    return tape

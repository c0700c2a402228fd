"""Check the reader's file, my_gemma.py, as far as a tutorial has led: run it, and say what differs first and why."""

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.gemma import BUNDLED, Gemma
from gemma_np.gemma import load as load_model
from gemma_np.oracle.diagnosis import describe_diagnosis, diagnose
from gemma_np.oracle.dump import Dump, align_dump, shape_note
from gemma_np.oracle.gradient_diagnosis import describe_gradients, diagnose_gradients
from gemma_np.oracle.gradient_files import step_of
from gemma_np.oracle.trace import Reference
from gemma_np.training.losses import cross_entropy, masked_mean, soft_cross_entropy
from support.difference import TOLERANCE, difference
from support.exercise import Verdict
from support.optimizer_mistakes import adamw_step, explain_step
from support.reader_file import NotWritten, ReaderError, ReaderFile

MODEL = "shakespeare-4m"
TEACHER, STUDENT = "shakespeare-4m", "shakespeare-1m"

STAGES = {
    "weights": 2,
    "embedding": 3,
    "input_layernorm": 4,
    **dict.fromkeys(("q", "k", "v", "q_rope", "k_rope"), 5),
    **dict.fromkeys(("scores", "context", "o"), 6),
    "probs": 7,
    "scores_capped": 8,
    **dict.fromkeys(("post_attention_layernorm", "resid_mid", "pre_feedforward_layernorm"), 9),
    **dict.fromkeys(("gate", "up", "hidden", "down", "post_feedforward_layernorm", "resid_post"), 9),
    **dict.fromkeys(("norm", "logits", "logits_capped"), 10),
    "decoding": 11,
    "gradients": 13,
    "step": 14,
    "distillation": 15,
}
"""What can be checked -> the tutorial after which it can be."""

TEXT = """HAMLET. To be, or not to be, that is the question:
Whether 'tis nobler in the mind to suffer
The slings and arrows of outrageous fortune,
Or to take arms against a sea of troubles,
And by opposing end them. To die, to sleep."""
SHORT_TEXTS = ("To be, or not to be, that is the question.", "To die, to sleep; to sleep, perchance to dream.")


class Wrong(Exception):  # noqa: N818 (it is a result)
    """What is wrong with the reader's file, in words."""


def check_file(path: str | Path, upto: str) -> Verdict:
    """Run the reader's file and compare what it computes with the reference, up to a record or a later part.

    upto: a key of `STAGES`. The functions of later tutorials are not the reader's but ours, so the whole model runs.
    """
    if upto not in STAGES:
        return Verdict(False, f"upto={upto!r}: expected one of {', '.join(STAGES)}")
    checks = [(2, _check_weights), (3, _check_records), (11, _check_decoding), (13, _check_gradients)]
    checks += [(14, _check_step), (15, _check_distillation)]
    said: list[str] = []
    try:
        with np.errstate(all="ignore"):  # a mistake may overflow
            file = ReaderFile(path, STAGES[upto])
            for tutorial, check in checks:
                if tutorial <= STAGES[upto]:
                    said.append(check(file))
    except NotWritten as missing:
        rest = [f"{name} ({number})" for name, number in file.not_written.items()]
        also = f"; to write up to {upto}, by tutorial: {', '.join(rest)}" if len(rest) > 1 else ""
        return Verdict(False, _lines(*said, f"{missing} is not written yet{also}"))
    except (ReaderError, Wrong) as problem:
        return Verdict(False, _lines(*said, str(problem)))
    if file.not_written:
        rest = [f"{name} (tutorial {number})" for name, number in file.not_written.items()]
        return Verdict(False, _lines(*said, f"not written yet, and nothing calls it: {', '.join(rest)}"))
    return Verdict(True, _lines(*said))


def _lines(*parts: str) -> str:
    return "\n".join(parts)


@cache
def _reference(name: str) -> Gemma:
    return load_model(name, "float64")


@cache
def _ids(text: str) -> list[int]:
    return _reference(MODEL).require_tokenizer().encode(text)


# Each check returns what is right, as one line, or raises Wrong.


def _check_weights(file: ReaderFile) -> str:
    """Compare what the reader's `load` returns with the files of the checkpoint."""
    for name in (MODEL, STUDENT):
        found = file.load(BUNDLED[name])
        if not isinstance(found, tuple) or len(found) != 2:
            raise Wrong(f"load returns {_kind(found)}, expected config, weights")
        config, weights = found
        expected = _reference(name)
        if not isinstance(config, dict) or config.get("hidden_size") != expected.config.hidden_size:
            raise Wrong("load: config is not the object in config.json")
        if not isinstance(weights, dict):
            raise Wrong(f"load: weights are {_kind(weights)}, expected a dict from names to arrays")
        _same_names("load: weights", weights, expected.weights)
        for key, weight in expected.weights.items():
            right = np.asarray(weight, np.float32)
            if weights[key].dtype != np.float32:
                raise Wrong(f"load: {key} is {weights[key].dtype}, expected float32")
            if said := difference(weights[key], right):
                raise Wrong(f"load: {key}: {said}")
    return f"weights: right, {len(weights)} arrays"


def _check_records(file: ReaderFile) -> str:
    """Run the model on a text longer than the window, and diagnose its records."""
    ids = _ids(TEXT)
    return "records: " + _diagnosed(file, [ids])


def _diagnosed(file: ReaderFile, passes: list[list[int]], cached: bool = False) -> str:
    """Run the reader's model on some passes, and compare its records with those of the reference.

    Raises Wrong with the oracle's diagnosis.
    """
    reference = Reference(_reference(MODEL), passes)
    records, stopped = _records(file, passes, cached)
    if not records:
        raise stopped or Wrong("no records: call tape(name, value) for each")
    alignment = align_dump(Dump(file.path, records, None, passes, None), reference)
    diagnosis = diagnose(alignment, "float32")
    unknown = [name for name in records if name not in reference.slices]
    if unknown:
        raise Wrong(f"{unknown[0]}: {alignment.skipped[unknown[0]].split(', or a --name-map')[0]}")
    right = 0
    for key in reference.slices:
        if key in alignment.skipped:
            raise Wrong(f"{_reached(right)}the first that differs is {key}: {alignment.skipped[key]}")
        if key in diagnosis.wrong:
            said = describe_diagnosis(diagnosis._replace(skipped={}))
            raise Wrong(_lines(f"{_reached(right)}the first that differs is {key}", *said))
        if key not in records:
            if stopped:
                raise type(stopped)(f"{_reached(right)}{key} comes next: {stopped}")
            raise Wrong(f"{_reached(right)}{key} is missing: call tape({_short(key)!r}, value) where it is computed")
        right += 1
    if stopped:
        raise stopped
    return f"right, {right} of {right}"


def _records(
    file: ReaderFile, passes: list[list[int]], cached: bool
) -> tuple[dict[str, np.ndarray], NotWritten | ReaderError | None]:
    """Return the records of the reader's model, and what stopped it before the end, if anything did."""
    records: dict[str, np.ndarray] = {}
    prefix = ""

    def tape(name: str, value: Any) -> Any:
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            raise ReaderError(f"tape({name!r}, ...) gets {_kind(value)}, expected an array; is a `return` missing?")
        records[prefix + name] = value.copy()
        return value

    try:
        config, weights = file.load(BUNDLED[MODEL])
        caches = file.new_cache(config, sum(map(len, passes))) if cached else None
        for number, ids in enumerate(passes):
            prefix = f"pass.{number}." if number else ""
            logits = file.gemma(np.array(ids), weights, config, caches, tape)
        if difference(logits, records.get(prefix + "logits_capped")):
            raise ReaderError("gemma returns something else than the record logits_capped")
    except (NotWritten, ReaderError) as problem:
        return records, problem
    return records, None


def _reached(right: int) -> str:
    return f"{right} record{'s' * (right != 1)} right; " if right else ""


def _short(key: str) -> str:
    """Return the name that the tape of a block gets."""
    return key.split(".", 2)[2] if key.startswith("layers.") else key


def _check_decoding(file: ReaderFile) -> str:
    """Read a text with a cache, in several ways across the wrap of the ring, and generate some tokens."""
    ids, window = _ids(TEXT), _reference(MODEL).config.sliding_window
    assert window is not None
    assert len(ids) > window + 8
    plans = {
        "one token at a time": [ids[: window - 4], *([token] for token in ids[window - 4 : window + 4])],
        "in chunks": [ids[:30], ids[30:60], ids[60 : window + 8]],
        "a prompt longer than the window": [ids[: window + 3], ids[window + 3 : window + 8]],
    }
    for plan, passes in plans.items():
        try:
            _diagnosed(file, passes, cached=True)
        except (ReaderError, Wrong) as problem:
            raise Wrong(f"decoding, {plan} ({_sizes(passes)} tokens): {problem}") from None
    config, weights = file.load(BUNDLED[MODEL])
    caches = file.new_cache(config, 2 * window)
    slots = [np.shape(own.keys)[-2] for own in caches]
    if slots[0] > window:
        raise Wrong(f"decoding: right, but layer 0 has {slots[0]} slots; a local layer needs the window's {window}")
    expected = list(_generated(tuple(ids[:40])))
    if (found := file.generate(ids[:40], len(expected), weights, config, chunk=16)) != expected:
        raise Wrong(f"decoding: generate returns {found}, expected {expected}, the most likely next tokens")
    return f"decoding: right, {', '.join(plans)}; the ring keeps {slots[0]} positions"


@cache
def _generated(ids: tuple[int, ...], count: int = 40) -> tuple[int, ...]:
    text = list(ids)
    for _ in range(count):
        text.append(int(_reference(MODEL).logits(text)[-1].argmax()))
    return tuple(text[len(ids) :])


def _sizes(passes: list[list[int]]) -> str:
    return ", ".join(str(len(ids)) for ids in passes)


def _check_gradients(file: ReaderFile) -> str:
    """Compare the loss and the gradients of the weights with those of a step of the reference."""
    texts = _short_texts()
    config, weights = file.load(BUNDLED[MODEL])
    value, dlogits, record = _forward(file, texts, weights, config)
    logits = record["logits_capped"].astype(np.float64)
    loss, gradient = masked_mean(*cross_entropy(logits, texts[:, 1:]))
    if said := difference(value, np.float32(loss)) or difference(dlogits, gradient.astype(np.float32)):
        raise Wrong(f"cross_entropy: {said}")
    found = file.gemma_backward(dlogits, texts[:, :-1], weights, config, record)
    step = step_of(_reference(MODEL), texts.tolist())
    _same_names("gemma_backward", found, weights)
    for name, weight in weights.items():
        if np.shape(found[name]) != weight.shape:
            raise Wrong(f"gemma_backward: {name}: {shape_note(np.shape(found[name]), weight.shape)}")
    diagnosis = diagnose_gradients(step, {"loss": np.array(value)} | found, "float32")
    if diagnosis.excess:
        raise Wrong(_lines("gradients:", *describe_gradients(diagnosis._replace(blind_spots=[]))))
    return f"gradients: right, {len(found)} of {len(weights)}"


def _short_texts() -> np.ndarray:
    """Return texts of equal length: ids [B, T + 1]."""
    encoded = [_ids(text) for text in SHORT_TEXTS]
    return np.array([ids[: min(map(len, encoded))] for ids in encoded])


def _forward(file: ReaderFile, texts: np.ndarray, weights: Any, config: Any) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """Return the reader's loss and its gradient on ids [B, T + 1], and the record of the forward pass."""
    record: dict[str, np.ndarray] = {}

    def tape(name: str, value: np.ndarray) -> np.ndarray:
        record[name] = value
        return value

    logits = file.gemma(texts[:, :-1], weights, config, None, tape)
    found = file.cross_entropy(logits, texts[:, 1:])
    if not isinstance(found, tuple) or len(found) != 2:
        raise Wrong(f"cross_entropy returns {_kind(found)}, expected the loss and its gradient")
    return *found, record


def _check_step(file: ReaderFile, steps: int = 3, learning_rate: float = 1e-3) -> str:
    """Take some training steps, and compare each with AdamW on the reader's own gradients."""
    texts = _short_texts()
    config, weights = file.load(BUNDLED[MODEL])
    weights = {name: weight.copy() for name, weight in weights.items()}
    state, ours = {"step": 0, "m": {}, "v": {}}, {"step": 0, "m": {}, "v": {}}
    for number in range(steps):
        value, dlogits, record = _forward(file, texts, weights, config)
        gradients = file.gemma_backward(dlogits, texts[:, :-1], weights, config, record)
        before = {name: weight.copy() for name, weight in weights.items()}
        states = ours if number == 0 else ours
        found = file.train_step(
            texts[:, :-1],
            lambda logits: file.cross_entropy(logits, texts[:, 1:]),
            weights,
            config,
            state,
            learning_rate,
        )
        if found is None or abs(found - value) > TOLERANCE["float32"] * abs(value):
            raise Wrong(f"step: train_step returns {found}, expected the loss before the step, {value:.6g}")
        if problem := explain_step(before, weights, gradients, states, learning_rate):
            raise Wrong(f"step {number + 1}: {problem}")
        adamw_step(before, gradients, ours, learning_rate)
    return f"step: right, {steps} steps"


def _check_distillation(file: ReaderFile) -> str:
    """Compare the loss against a teacher's logits, and its gradient, with the reference's."""
    ids = np.array(_ids(SHORT_TEXTS[0]))
    logits, teacher = (_reference(name).logits(ids) for name in (STUDENT, TEACHER))
    found = file.distillation_loss(logits, teacher)
    if not isinstance(found, tuple) or len(found) != 2:
        raise Wrong(f"distillation_loss returns {_kind(found)}, expected the loss and its gradient")
    expected = masked_mean(*soft_cross_entropy(logits, teacher))
    for what, number, right in zip(("loss", "gradient"), found, expected, strict=True):
        if said := difference(number, np.asarray(right)):
            hint = next(_distillation_hints(number, what, logits, teacher), "")
            raise Wrong(f"distillation, the {what}: {said}{hint}")
    return "distillation: right, loss and gradient"


def _distillation_hints(found: Any, what: str, logits: np.ndarray, teacher: np.ndarray) -> Iterator[str]:
    """Yield what was computed instead."""
    place = ("loss", "gradient").index(what)
    hard = teacher.argmax(axis=-1)
    instead = {
        "it is that of all positions together; take their mean": soft_cross_entropy(logits, teacher),
        "student and teacher are exchanged: weight log P_S by P_T": masked_mean(*soft_cross_entropy(teacher, logits)),
        "it is that of the teacher's most likely tokens; use its whole distribution": masked_mean(
            *cross_entropy(logits, hard)
        ),
    }
    for hint, results in instead.items():
        right = np.sum(results[0]) if what == "loss" else results[place]
        if not difference(found, np.asarray(right)):
            yield f": {hint}"


def _same_names(what: str, found: Any, expected: Iterable[str]) -> None:
    """Raise Wrong unless a dict has exactly these names."""
    if not isinstance(found, dict):
        raise Wrong(f"{what}: {_kind(found)}, expected a dict from names to arrays")
    expected = list(expected)
    if missing := [name for name in expected if name not in found]:
        raise Wrong(f"{what}: {missing[0]} is missing")
    if other := [name for name in found if name not in expected]:
        raise Wrong(f"{what}: {other[0]} is not a weight of the model")


def _kind(value: Any) -> str:
    """Describe what came in place of what was expected."""
    if value is None:
        return "nothing (None)"
    return f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"

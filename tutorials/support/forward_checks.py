"""What the reader's file computes forward, compared with the reference: weights, records, cached decoding."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gemma_np.checkpoints.config_json import config_to_json
from gemma_np.checkpoints.saving import save_folder
from gemma_np.config import GLOBAL, LOCAL, GemmaConfig
from gemma_np.gemma import BUNDLED, Gemma
from gemma_np.gemma import load as load_model
from gemma_np.oracle.comparison import compare
from gemma_np.oracle.conformance_kit import random_weights
from gemma_np.oracle.diagnosis import describe_diagnosis, diagnose
from gemma_np.oracle.dump import Alignment, Dump, align_dump
from gemma_np.oracle.trace import Passes, Reference
from support.difference import difference
from support.function_checks import check_functions, rope_cases
from support.reader_file import NotWritten, ReaderFile, Wrong, kind, require_names, require_pair

MODEL, SMALL = "shakespeare-4m", "shakespeare-1m"
FOLDER = BUNDLED[MODEL]

TEXT = """HAMLET. To be, or not to be, that is the question:
Whether 'tis nobler in the mind to suffer
The slings and arrows of outrageous fortune,
Or to take arms against a sea of troubles,
And by opposing end them."""
"""Longer than the window."""

OTHER_SIZES = GemmaConfig(
    model_type="gemma2",
    vocab_size=50,
    hidden_size=60,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=28,
    max_position_embeddings=64,
    query_pre_attn_scalar=20,
    layer_types=(LOCAL, GLOBAL, LOCAL),
    sliding_window=5,
    rope_theta=500.0,
    attn_logit_softcapping=5.0,
    final_logit_softcapping=3.0,
    rms_norm_eps=1e-3,
)
"""No two sizes are equal, as some of the bundled models are: head_dim, query_pre_attn_scalar, D / H."""


class Subject(NamedTuple):
    """A model as the reader's functions take it, and its reference in float64."""

    reference: Gemma
    config: dict[str, Any]
    weights: dict[str, np.ndarray]


def bundled(file: ReaderFile) -> Subject:
    """Return the bundled model, as the reader's `load` reads it."""
    return Subject(reference_model(), *file.load(FOLDER))


@cache
def other_sizes() -> Subject:
    """Return a random model; its config has no "layer_types", like the oldest files of Gemma 2."""
    weights = random_weights(OTHER_SIZES, 0)
    exact = {name: weight.astype(np.float64) for name, weight in weights.items()}
    config = config_to_json(OTHER_SIZES)
    del config["layer_types"]
    return Subject(Gemma(OTHER_SIZES, exact, None), config, weights)


@cache
def reference_model(name: str = MODEL) -> Gemma:
    """Return a bundled model in float64."""
    return load_model(name, "float64")


def encode(text: str) -> list[int]:
    """Return the token ids of a text; the bundled models have the same."""
    return reference_model().require_tokenizer().encode(text)


def check_weights(file: ReaderFile) -> str:
    """Compare what the reader's `load` returns with a checkpoint in bfloat16, and one in several float32 files."""
    count = _compare_weights(file, FOLDER, reference_model(), "")
    small = reference_model(SMALL)
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        weights = ((name, np.asarray(weight, np.float32)) for name, weight in small.weights.items())
        save_folder(shards, small.config, weights, None, 1e6)
        _compare_weights(file, shards, small, " of a checkpoint with an index and several float32 files")
    return f"weights: right, all {count}"


def _compare_weights(file: ReaderFile, folder: Path, model: Gemma, what: str) -> int:
    found = file.load(folder)
    require_pair("load", found, "config, weights")
    config, weights = found
    if not isinstance(config, dict) or config.get("hidden_size") != model.config.hidden_size:
        raise Wrong(f"load: config{what} is not the object in config.json")
    require_names(f"load: weights{what}", weights, model.weights)
    for name, weight in model.weights.items():
        if said := difference(weights[name], np.asarray(weight, np.float32)):
            raise Wrong(f"load: {name}{what}: {said}")
    return len(weights)


def check_records(file: ReaderFile) -> str:
    """Run two models on texts longer than their window, and diagnose their records; then what these do not show."""
    count = _diagnosed(file, bundled(file), [encode(TEXT)])
    ids = np.random.default_rng(0).integers(0, OTHER_SIZES.vocab_size, (2, 12))
    try:
        _diagnosed(file, other_sizes(), [ids[0].tolist()])
    except Wrong as problem:
        raise Wrong(f"right for {MODEL}, but not for a model of other sizes without layer_types: {problem}") from None
    _check_batch(file, ids)
    check_functions(file, rope_cases())
    lent = f", with our functions after tutorial {file.upto}" if file.upto < 10 else ""
    return f"records: right, all {count}{lent}"


def _check_batch(file: ReaderFile, ids: np.ndarray) -> None:
    """Compare the records of ids [B, T] with those of each text alone."""
    alone = [_trace(file, other_sizes(), [text.tolist()])[0] for text in ids]
    together, stopped = _trace(file, other_sizes(), [ids.tolist()])
    for name, record in together.items():
        if said := difference(record, np.stack([records[name] for records in alone])):
            raise Wrong(f"right for one text, but not for two at once, {_in_block(name)} of ids {ids.shape}: {said}")
    if stopped:
        raise type(stopped)(f"right for one text, but not for two at once, ids {ids.shape}: {stopped}")


def check_decoding(file: ReaderFile) -> str:
    """Try the cache of one layer, read a text with a cache across the wrap of the ring, and generate some tokens."""
    _check_cache(file)
    ids, window = encode(TEXT), reference_model().config.sliding_window or 0
    assert len(ids) >= window + 8
    subject = bundled(file)
    plans = {
        "one token at a time": [ids[: window - 2], *([token] for token in ids[window - 2 : window + 2])],
        "in chunks": [ids[:30], ids[30:60], ids[60 : window + 8]],
        "a prompt longer than the window": [ids[: window + 3], ids[window + 3 : window + 8]],
    }
    for plan, passes in plans.items():
        try:
            _diagnosed(file, subject, passes, cached=True)
        except Wrong as problem:
            sizes = ", ".join(str(len(part)) for part in passes)
            raise Wrong(f"decoding, {plan} ({sizes} tokens): {problem}") from None
    slots = _slots_after(file, subject, ids[: window + 8])
    if slots > window:
        raise Wrong(f"decoding: right, but layer 0 keeps {slots} positions; a ring of {window} is enough for it")
    _check_generate(file, subject, ids[:40])
    return f"decoding: right, {', '.join(plans)}; a local layer keeps {slots} positions"


def _slots_after(file: ReaderFile, subject: Subject, ids: list[int]) -> int:
    """Return how many positions the keys of layer 0 have room for when some ids have been read."""
    cache = file.new_cache(subject.config, 2 * len(ids))
    file.gemma(np.array(ids), subject.weights, subject.config, cache)
    return np.shape(cache[0].keys)[-2]


def _check_generate(file: ReaderFile, subject: Subject, ids: list[int], count: int = 40, chunk: int = 16) -> None:
    """Compare generated ids with the most likely ones, and the sizes of the passes with the chunk."""
    sizes: list[int] = []
    gemma = file.module.gemma

    def counting(ids: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append(np.size(ids))
        return gemma(ids, *arguments, **options)

    file.module.gemma = counting
    found, expected = file.generate(ids, count, subject.weights, subject.config, chunk=chunk), _greedy(ids, count)
    file.module.gemma = gemma
    if len(found) != len(expected):
        raise Wrong(f"generate returns {len(found)} ids, expected {len(expected)}")
    for number, (token, right) in enumerate(zip(found, expected, strict=True)):
        if token != right:
            raise Wrong(f"generate: token {number} after the prompt is {token}, expected {right}, the most likely one")
    if max(sizes, default=0) > chunk:
        raise Wrong(f"generate reads {max(sizes)} tokens at once, expected at most `chunk`, {chunk}")


def _check_cache(file: ReaderFile, slots: int = 4) -> None:
    """Append tokens to a small cache, before and across the wrap; each key is the number of its position."""
    cache, end = file.LayerCache(1, slots, 2), 0
    for count in (2, 1, 1, 1, 1, 1, 3, 1, 6, 2):
        start, end = end, end + count
        new = np.repeat(np.arange(start, end, dtype=np.float32)[None, :, None], 2, axis=-1)  # [K, T, h]
        place = f"LayerCache({slots} slots).append, {count} new after {start}"
        try:
            keys, values, positions = file.called(cache.append, new, -new)
        except (TypeError, ValueError):
            raise Wrong(f"{place}: expected keys, values and positions") from None
        positions = np.asarray(positions)
        if np.shape(keys) != np.shape(values) or np.shape(keys) != (1, len(positions), 2):
            shapes = f"keys {np.shape(keys)}, values {np.shape(values)}, positions {positions.shape}"
            raise Wrong(f"{place}: {shapes}, expected [K, S, h] twice and [S]")
        if (np.diff(positions) <= 0).any():
            raise Wrong(f"{place}: positions {positions.tolist()}, expected them in order")
        for position in range(max(0, start - slots + 1), end):
            if position not in positions:
                raise Wrong(f"{place}: position {position} is not among them, though a new token sees it")
            found = int(np.flatnonzero(positions == position)[0])
            for what, number in (("key", keys[0, found, 0]), ("value", -values[0, found, 0])):
                if number != position:
                    raise Wrong(f"{place}: the {what} of position {position} is that of position {number:.0f}")


def _greedy(ids: list[int], count: int) -> list[int]:
    """Return the most likely continuation, without a cache."""
    text = list(ids)
    for _ in range(count):
        text.append(int(reference_model().logits(text)[-1].argmax()))
    return text[len(ids) :]


def _diagnosed(file: ReaderFile, subject: Subject, passes: Passes, cached: bool = False) -> int:
    """Run the reader's model on some passes, and return how many records it leaves, all of them right.

    Raises Wrong with the first record that differs and the oracle's diagnosis, and NotWritten.
    """
    records, stopped = _trace(file, subject, passes, cached)
    if stopped and not records:
        raise stopped
    rows = compare(_aligned(subject, records, passes), "float32", isolate=True)
    first = next((row for row in rows if row.status != "OK"), None)
    if first is None and stopped:
        raise stopped
    if first is None:
        return len(records)
    reached = f"records: {rows.index(first)} right, then {first.key}"
    if first.status == "MISSING" and stopped:
        raise type(stopped)(f"{reached}: {stopped}")
    lines = [f"{reached} differs"]
    if first.status == "SKIPPED":
        raise Wrong(f"{reached}: {first.note}")  # a wrong shape, or NaN, which all later records have, too
    if first.status == "MISSING":
        unknown = [row.key for row in rows if row.status == "UNKNOWN"]
        instead = f" (there is {unknown[0]})" if unknown else ""
        lines = [f"{reached} is missing{instead}: call tape({_in_block(first.key)!r}, value) where it is computed"]
    if first.status == "DIFF" and (plainly := _said_plainly(first.key, records[first.key])):
        raise Wrong(f"{reached}: {plainly}")
    wrong = next((row.key for row in rows if row.status == "DIFF"), None)
    if wrong:
        number = _pass(wrong)  # that of the first mistake; the search takes longer with more passes
        seen = {key: record for key, record in records.items() if _pass(key) <= number}
        lines += describe_diagnosis(
            diagnose(_aligned(subject, seen, passes[: number + 1]), "float32")._replace(skipped={})
        )
    raise Wrong("\n".join(lines))


def _said_plainly(key: str, record: np.ndarray) -> str | None:
    """Say what is wrong with a record that needs no reference to be wrong."""
    if key.endswith("probs") and difference(record.sum(axis=-1), np.ones(record.shape[:-1])):
        return "its rows do not sum to 1; the softmax is over the keys, the last axis"
    return None


def _aligned(subject: Subject, records: dict[str, np.ndarray], passes: Passes) -> Alignment:
    return align_dump(Dump(Path("my_gemma.py"), records, None, None, None), Reference(subject.reference, passes))


def _pass(key: str) -> int:
    """Return the number of the pass of a record."""
    return int(key.split(".")[1]) if key.startswith("pass.") else 0


def _trace(
    file: ReaderFile, subject: Subject, passes: Passes, cached: bool = False
) -> tuple[dict[str, np.ndarray], NotWritten | Wrong | None]:
    """Return the records of the reader's model, and what stopped it before the end, if anything did."""
    records: dict[str, np.ndarray] = {}
    taped: dict[str, np.ndarray] = {}
    prefix = ""

    def tape(name: str, value: Any) -> Any:
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            raise Wrong(f"the tape gets {kind(value)} for {name}, expected an array of floats")
        if prefix + name in records:
            raise Wrong(f"the tape gets {name} twice")
        records[prefix + name], taped[prefix + name] = value.copy(), value
        return value

    try:
        caches = file.new_cache(subject.config, sum(map(len, passes))) if cached else None
        for number, ids in enumerate(passes):
            prefix = f"pass.{number}." if number else ""
            logits = file.gemma(np.array(ids), subject.weights, subject.config, caches, tape)
            if difference(logits, records.get(f"{prefix}logits_capped")):
                raise Wrong(f"gemma returns {kind(logits)} that is not the record logits_capped")
            _require_unchanged(records, taped)
    except (NotWritten, Wrong) as problem:
        return records, problem
    return records, None


def _require_unchanged(records: dict[str, np.ndarray], taped: dict[str, np.ndarray]) -> None:
    """Raise Wrong unless the arrays that the tape got are still equal to their copies."""
    for name, record in records.items():
        if not np.array_equal(taped[name], record, equal_nan=True):
            how = "by an operation in place, such as `x += y` or `x[...] = y`; make a new array, `x = x + y`"
            raise Wrong(f"{name} is changed after its record, {how}")


def _in_block(key: str) -> str:
    """Return the name of a record as a block knows it."""
    return key.split(".", 2)[2] if key.startswith("layers.") else key

"""Read a dump: the intermediates of another implementation in a safetensors file, under our names or its own.

A name map is a JSON file from their names to ours, where `{layer}` stands for the layer number:

    {"blk.{layer}.attn_q": "layers.{layer}.self_attn.q", "result_norm": "norm"}

Arrays with other axes, or with several records side by side, have a layout (see `gemma_np.oracle.layouts`):

    {"q_{layer}": {"record": "layers.{layer}.self_attn.q", "layout": "T H h"},
     "gate_up_{layer}": {"records": ["layers.{layer}.mlp.gate", "layers.{layer}.mlp.up"], "layout": "T F"}}
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from itertools import permutations
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from gemma_np.checkpoints.config_json import config_from_json
from gemma_np.checkpoints.safetensors_file import read_metadata, stored_tensors
from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError, quoted, shortened
from gemma_np.input_files import require_file
from gemma_np.json_input import TEXT, Schema, list_of, object_of, optional, parse_json, read_json, whole_number
from gemma_np.oracle.layouts import Entry, check_layout, in_our_axes
from gemma_np.oracle.trace import RecordSlice, Reference

_LAYOUT = object_of({"record": optional(TEXT), "records": optional(list_of(TEXT)), "layout": optional(TEXT)})
_ENTRY = Schema("text, or an object with a layout", lambda value: isinstance(value, str | dict), _LAYOUT.fields)
_TEXTS = list_of(list_of(whole_number(0)))


class Dump(NamedTuple):
    """The content of a dump file. Config, passes, model and texts are None when the metadata lacks them."""

    path: Path
    records: dict[str, np.ndarray]  # memory-mapped, by the names of `gemma_np.oracle.trace`
    config: GemmaConfig | None
    passes: list[list[int]] | None
    model: str | None
    entries: Mapping[str, Entry] = MappingProxyType({})  # arrays that have a layout, by their own names
    texts: list[list[int]] | None = None  # of a training step, if the records are its gradients

    @property
    def dtype(self) -> str:
        """Return the dtype in which the records were probably computed: the coarsest one among them, or a coarser one
        that has every number of theirs."""
        coarsest_first = ("float16", "bfloat16", "float32", "float64")
        stored = {record.dtype.name for record in self.records.values()}
        coarsest = next(name for name in coarsest_first if name in stored)
        for name in ("bfloat16", "float16") if coarsest == "float32" else ():
            if all(_is_exact_in(record, name) for record in self.records.values()):
                return name
        return coarsest


class Alignment(NamedTuple):
    """The records of a dump, matched with those of a reference."""

    reference: Reference  # with the rows that the dump has
    records: dict[str, np.ndarray]  # in the order of execution
    skipped: dict[str, str]  # records that cannot be compared, and why


def _is_exact_in(record: np.ndarray, dtype: str) -> bool:
    """Return whether every number of a record is one of this dtype."""
    values, target = np.asarray(record, np.float32), ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    with np.errstate(over="ignore"):
        return np.array_equal(values.astype(target).astype(np.float32), values)


def read_dump(path: str | Path, name_map: str | Path | None = None) -> Dump:
    """Read a dump.

    Raises GemmaError for a damaged file, a file without records, an invalid name map, and two names of one record.
    """
    path = Path(path)
    translate = _translation(name_map)
    records, entries, stored_as = dict[str, np.ndarray](), dict[str, Entry](), dict[str, str]()
    for their_name, record in _stored_records(path).items():
        entry = translate(their_name)
        for key in entry.keys:
            if key in stored_as:
                both = f"{quoted(stored_as[key])} and {quoted(their_name)}: both are {quoted(key)}"
                raise GemmaError(f"{path}: {both}, expected one of them")
            stored_as[key] = their_name
        records[their_name if entry.layout else entry.keys[0]] = record
        if entry.layout:
            entries[their_name] = entry
    if not records:
        raise GemmaError(f"{path}: no records, expected intermediates under the names that gemma-np records prints")
    metadata = {} if path.suffix == ".npz" else read_metadata(path)
    config = passes = texts = None
    try:
        if "config" in metadata:
            config = config_from_json(parse_json(metadata["config"], object_of({}), "config"))
        if "passes" in metadata:
            passes = parse_json(metadata["passes"], _TEXTS, "passes")
        if "texts" in metadata:
            texts = parse_json(metadata["texts"], _TEXTS, "texts")
    except GemmaError as error:
        raise GemmaError(f"{path}: metadata: {error}") from None
    return Dump(path, records, config, passes, metadata.get("model") or None, entries, texts)


def has_gradients(path: str | Path) -> bool:
    """Return whether the metadata of a file names the texts of a training step."""
    return Path(path).suffix == ".safetensors" and "texts" in read_metadata(Path(path))


def _stored_records(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a .safetensors or .npz file. Raises GemmaError for another or a damaged one."""
    if path.suffix == ".npy":
        raise GemmaError(f"{path}: one array without a name, expected a .safetensors or .npz file with records")
    if path.suffix == ".npz":
        return _npz_records(path)
    records = {}
    for name, tensor in stored_tensors(path).items():
        assert tensor.mapped is not None
        records[name] = tensor.mapped
    return records


def _npz_records(path: Path) -> dict[str, np.ndarray]:
    require_file(path, "a .npz file with records")
    try:
        with np.load(path, allow_pickle=False) as file:
            records = {name: file[name] for name in file.files}
    except Exception as error:  # a damaged archive can make NumPy raise anything
        raise GemmaError(f"{path}: damaged ({shortened(str(error))}), expected a .npz file with records") from None
    for name, record in records.items():
        if record.dtype.name not in ("float64", "float32", "float16"):
            raise GemmaError(f"{path}: {quoted(name)}: {record.dtype}, expected float64, float32 or float16")
    return records


def align_dump(dump: Dump, reference: Reference) -> Alignment:
    """Return the records in the order of execution, with shapes matched to the reference where this is unambiguous.

    A batch axis of length 1 is dropped, keys that a ring buffer has dropped are filled with zeros, and logits may be
    those of the last tokens of a pass only. Records with unknown names, other shapes, or NaN and infinity are skipped.

    Raises GemmaError when no record is left.
    """
    known = reference.slices
    given, skipped = _in_our_axes(dump, reference)
    rows, records = dict[str, int](), {}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            expected = f"{near[0]} or another" if near else "one"
            skipped[name] = f"unknown, expected {expected} of gemma-np records, or a --name-map"
    for key, record_slice in known.items():
        if key not in given:
            continue
        record = _align(given[key], record_slice)
        if record.shape != record_slice.shape and _has_last_rows(record, record_slice):
            rows[key] = len(record)
        elif record.shape != record_slice.shape:
            skipped[key] = shape_note(record.shape, record_slice.shape)
        # Scores may be -inf where a mask was added to them.
        if record_slice.masked is None and not np.isfinite(np.asarray(record, np.float32)).all():
            skipped[key] = "has NaN or infinity"
        if key not in skipped:
            records[key] = record
    if not records:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        raise GemmaError(f"{dump.path}: nothing to compare: {reasons}")
    return Alignment(reference.of_last_rows(rows) if rows else reference, records, skipped)


def _in_our_axes(dump: Dump, reference: Reference) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the records by our names, and those whose layout does not fit, with the reason."""
    given, skipped = dict[str, np.ndarray](), dict[str, str]()
    for name, array in dump.records.items():
        entry = dump.entries.get(name)
        if entry is None:
            given[name] = array
            continue
        unknown = [key for key in entry.keys if key not in reference.slices]
        try:
            if unknown:
                raise GemmaError(f"{quoted(unknown[0])} is none of gemma-np records")
            slices = [reference.slices[key] for key in entry.keys]
            given |= in_our_axes(array, entry.layout, slices, reference.config)
        except GemmaError as error:
            skipped[name] = str(error)
    return given, skipped


def shape_note(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """Describe how a shape is wrong, and the transpose that fixes it, if there is one."""
    note = f"shape {found}, expected {expected}"
    for order in permutations(range(len(expected))):
        if len(found) == len(expected) and tuple(found[axis] for axis in order) == expected:
            return f"{note}: the axes are in another order; transpose({', '.join(map(str, order))}) fixes it"
    if math.prod(found) == math.prod(expected):
        return f"{note}: the same number of elements, in other axes"
    if len(found) == len(expected) and found[:-1] == expected[:-1] and found[-1] > expected[-1]:
        return f"{note}: is it padded? keep the first {expected[-1]} columns"
    if found[1:] == expected and found[0] > 1:
        return f"{note}: a batch of {found[0]}; keep one text"
    return note


def _has_last_rows(record: np.ndarray, record_slice: RecordSlice) -> bool:
    """Return whether these are logits of the last tokens of a pass only."""
    rows, columns = record_slice.shape[-2:]
    is_logits = record_slice.name in ("logits", "logits_capped")
    return is_logits and record.ndim == 2 and 0 < len(record) < rows and record.shape[1] == columns


def _align(record: np.ndarray, record_slice: RecordSlice) -> np.ndarray:
    """Drop a batch axis of length 1, and fill in the keys that a ring buffer has dropped: these are masked, so their
    probabilities are zero."""
    shape = record_slice.shape
    if record.ndim == 1 and record_slice.name in ("logits", "logits_capped"):
        record = record[None]
    if record.ndim == len(shape) + 1 and record.shape[0] == 1:
        record = record[0]
    if record_slice.columns is not None and record.shape[:-1] == shape[:-1] and record.shape[-1] < shape[-1]:
        dropped = np.zeros((*shape[:-1], shape[-1] - record.shape[-1]), record.dtype)
        record = np.concatenate([dropped, record], axis=-1)
    return record


def _translation(name_map: str | Path | None) -> Callable[[str], Entry]:
    """Return a function from their names to what they hold."""
    if name_map is None:
        return lambda name: Entry((name,), "")
    table = read_json(Path(name_map), object_of({}, others=_ENTRY), "a JSON object from their names to ours")
    rules = [(_pattern(theirs), _entry(theirs, ours, name_map)) for theirs, ours in table.items()]

    def translate(name: str) -> Entry:
        for pattern, entry in rules:
            if match := pattern.fullmatch(name):
                layer = match["layer"] if "layer" in pattern.groupindex else ""
                return Entry(tuple(key.replace("{layer}", layer) for key in entry.keys), entry.layout)
        return Entry((name,), "")

    return translate


def _entry(theirs: str, ours: str | Mapping[str, Any], name_map: str | Path) -> Entry:
    """Return what a line of a name map says. Raises GemmaError when it is not valid."""
    if isinstance(ours, str):
        entry = Entry((ours,), "")
    else:
        names = [ours["record"]] if ours.get("record") else ours.get("records") or []
        if not names or not ours.get("layout"):
            raise GemmaError(f"{name_map}: {quoted(theirs)}: expected a name, or record or records with a layout")
        entry = Entry(tuple(names), ours["layout"])
        try:
            check_layout(entry.layout)
        except GemmaError as error:
            raise GemmaError(f"{name_map}: {quoted(theirs)}: {error}") from None
    for key in entry.keys:
        if "{layer}" in key and "{layer}" not in theirs:
            raise GemmaError(f"{name_map}: {quoted(key)} has a {{layer}}, expected one in {quoted(theirs)}")
    return entry


def _pattern(name: str) -> re.Pattern[str]:
    """Return the pattern of their names: `{layer}` is a number, the same wherever it stands."""
    pattern = re.escape(name).replace(r"\{layer\}", "(?P<layer>[0-9]+)", 1)
    return re.compile(pattern.replace(r"\{layer\}", "(?P=layer)"))

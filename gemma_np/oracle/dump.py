"""Read a dump: the intermediates of another implementation in a safetensors file, under our names or its own.

A name map is a JSON file from their names to ours, where `{layer}` stands for the layer number:

    {"blk.{layer}.attn_q": "layers.{layer}.self_attn.q", "result_norm": "norm"}
"""

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gemma_np.checkpoints.config_json import config_from_json
from gemma_np.checkpoints.safetensors_file import read_metadata, stored_tensors
from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError, quoted
from gemma_np.json_input import TEXT, list_of, object_of, parse_json, read_json, whole_number
from gemma_np.oracle.trace import RecordSlice, Reference

_PASSES = list_of(list_of(whole_number(0)))


class Dump(NamedTuple):
    """The content of a dump file. Config, passes and model are None when the metadata lacks them."""

    path: Path
    records: dict[str, np.ndarray]  # memory-mapped, by the names of `gemma_np.oracle.trace`
    config: GemmaConfig | None
    passes: list[list[int]] | None
    model: str | None

    @property
    def dtype(self) -> str:
        """Return the coarsest dtype among the records, which is probably that of the computation."""
        coarsest_first = ("float16", "bfloat16", "float32", "float64")
        stored = {record.dtype.name for record in self.records.values()}
        return next(name for name in coarsest_first if name in stored)


def read_dump(path: str | Path, name_map: str | Path | None = None) -> Dump:
    """Read a dump.

    Raises GemmaError for a damaged file, a file without records, an invalid name map, and two names of one record.
    """
    path = Path(path)
    translate = _translation(name_map)
    records, stored_as = dict[str, np.ndarray](), dict[str, str]()
    for their_name, tensor in stored_tensors(path).items():
        name = translate(their_name)
        if name in records:
            both = f"{quoted(stored_as[name])} and {quoted(their_name)}: both are {quoted(name)}"
            raise GemmaError(f"{path}: {both}, expected one of them")
        assert tensor.mapped is not None
        records[name], stored_as[name] = tensor.mapped, their_name
    if not records:
        raise GemmaError(f"{path}: no records, expected intermediates under the names that gemma-np records prints")
    metadata = read_metadata(path)
    config = passes = None
    try:
        if "config" in metadata:
            config = config_from_json(parse_json(metadata["config"], object_of({}), "config"))
        if "passes" in metadata:
            passes = parse_json(metadata["passes"], _PASSES, "passes")
    except GemmaError as error:
        raise GemmaError(f"{path}: metadata: {error}") from None
    return Dump(path, records, config, passes, metadata.get("model") or None)


def align_dump(dump: Dump, reference: Reference) -> dict[str, np.ndarray]:
    """Return the records in the order of execution, with shapes matched to the reference where this is unambiguous.

    A batch axis of length 1 is dropped, and keys that a ring buffer has dropped are filled with zeros.

    Raises GemmaError for unknown names (suggesting a similar one), and for NaN and infinity.
    """
    known = reference.slices
    for name in dump.records:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            expected = f"{near[0]} or another" if near else "one"
            raise GemmaError(f"{dump.path}: {quoted(name)}: expected {expected} of gemma-np records, or a --name-map")
    records = {}
    for key, record_slice in known.items():
        if key in dump.records:
            records[key] = record = _align(dump.records[key], record_slice)
            # Scores may be -inf where a mask was added to them.
            if record_slice.masked is None and not np.isfinite(np.asarray(record, np.float32)).all():
                raise GemmaError(f"{dump.path}: {key}: has NaN or infinity; it is the first such record")
    return records


def _align(record: np.ndarray, record_slice: RecordSlice) -> np.ndarray:
    """Drop a batch axis of length 1, and fill in the keys that a ring buffer has dropped: these are masked, so their
    probabilities are zero."""
    shape = record_slice.shape
    if record.ndim == len(shape) + 1 and record.shape[0] == 1:
        record = record[0]
    if record_slice.columns is not None and record.shape[:-1] == shape[:-1] and record.shape[-1] < shape[-1]:
        dropped = np.zeros((*shape[:-1], shape[-1] - record.shape[-1]), record.dtype)
        record = np.concatenate([dropped, record], axis=-1)
    return record


def _translation(name_map: str | Path | None) -> Callable[[str], str]:
    """Return a function from their names to ours."""
    if name_map is None:
        return lambda name: name
    table = read_json(Path(name_map), object_of({}, others=TEXT), "a JSON object from their names to ours")
    for theirs, ours in table.items():
        if "{layer}" in ours and "{layer}" not in theirs:
            raise GemmaError(f"{name_map}: {quoted(ours)} has a {{layer}}, expected one in {quoted(theirs)}")
    rules = [(_pattern(theirs), ours) for theirs, ours in table.items()]

    def translate(name: str) -> str:
        for pattern, ours in rules:
            if match := pattern.fullmatch(name):
                return ours.replace("{layer}", match["layer"]) if "{layer}" in ours else ours
        return name

    return translate


def _pattern(name: str) -> re.Pattern[str]:
    """Return the pattern of their names: `{layer}` is a number, the same wherever it stands."""
    pattern = re.escape(name).replace(r"\{layer\}", "(?P<layer>[0-9]+)", 1)
    return re.compile(pattern.replace(r"\{layer\}", "(?P=layer)"))

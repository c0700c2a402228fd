"""A dump: the intermediates that some implementation wrote down, in a safetensors file, under our names or its own.

A file of names says which of its names is which of ours, `{layer}` standing for the number of the layer:

    {"blk.{layer}.attn_q": "layers.{layer}.self_attn.q", "result_norm": "norm"}
"""

import difflib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gemma_np.checkpoints.config_json import config_from_json
from gemma_np.checkpoints.safetensors_file import read_metadata, stored_tensors
from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.oracle.trace import RecordSlice, Reference


class Dump(NamedTuple):
    """What a file holds. Config, passes and model are None where it does not say."""

    path: Path
    records: dict[str, np.ndarray]  # memory-mapped, by the names of `gemma_np.oracle.trace`
    config: GemmaConfig | None
    passes: list[list[int]] | None
    model: str | None

    @property
    def dtype(self) -> str:
        """The coarsest dtype among the records: that of what computed them, one hopes."""
        order = ("float16", "bfloat16", "float32", "float64")
        found = {record.dtype.name for record in self.records.values()}
        return next(name for name in order if name in found)


def read_dump(path: Path, names: Path | None = None) -> Dump:
    """Read a dump.

    Raises GemmaError for a damaged file, and for one without records.
    """
    if not path.is_file():
        raise GemmaError(f"{path}: no such file, expected a safetensors file")
    translate = _translation(names)
    records = {
        translate(name): tensor.mapped for name, tensor in stored_tensors(path).items() if tensor.mapped is not None
    }
    if not records:
        raise GemmaError(f"{path}: no records, expected intermediates by the names of gemma-np records")
    metadata = read_metadata(path)
    try:
        config = config_from_json(json.loads(metadata["config"])) if "config" in metadata else None
        passes = json.loads(metadata["passes"]) if "passes" in metadata else None
    except ValueError as error:
        raise GemmaError(f"{path}: metadata: {error}, expected config and passes as JSON") from None
    return Dump(path, records, config, passes, metadata.get("model") or None)


def align_dump(dump: Dump, reference: Reference) -> dict[str, np.ndarray]:
    """The records in the order of execution, the axis of a batch of one dropped.

    Raises GemmaError for names that no record has (the nearest that one has are suggested), and for NaN and infinity.
    """
    known = reference.slices
    for name in dump.records:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.5)
            hint = f"nearest: {', '.join(near)}" if near else "gemma-np records lists them"
            raise GemmaError(
                f"{dump.path}: {name}: no record has this name ({hint}); --name-map maps names of your own"
            )
    records = {}
    for key, place in known.items():
        if key in dump.records:
            records[key] = record = _fit(dump.records[key], place)
            # A score that is hidden may be -inf: a mask was added to it.
            if place.masked is None and not np.isfinite(np.asarray(record, np.float32)).all():
                raise GemmaError(f"{dump.path}: {key}: has NaN or infinity, the first record that does")
    return records


def _fit(record: np.ndarray, place: RecordSlice) -> np.ndarray:
    """The record without the axis of a batch of one, and with the keys that a ring has dropped: hidden scores, and
    probabilities of zero."""
    if record.ndim == len(place.shape) + 1 and record.shape[0] == 1:
        record = record[0]
    if place.columns is not None and record.shape[:-1] == place.shape[:-1] and record.shape[-1] < place.shape[-1]:
        dropped = place.shape[-1] - record.shape[-1]
        record = np.concatenate([np.zeros((*record.shape[:-1], dropped), record.dtype), record], axis=-1)
    return record


def _translation(names: Path | None) -> Callable[[str], str]:
    """A function from their names to ours."""
    if names is None:
        return lambda name: name
    try:
        table = json.loads(names.read_text(encoding="utf-8"))
        rules = [(_pattern(theirs), ours) for theirs, ours in table.items()]
    except (OSError, ValueError, AttributeError) as error:
        raise GemmaError(f"{names}: {error}, expected a JSON object from their names to ours") from None

    def translate(name: str) -> str:
        for pattern, ours in rules:
            if match := pattern.fullmatch(name):
                return ours.format(**match.groupdict())
        return name

    return translate


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{layer\}", r"(?P<layer>\d+)"))

"""Trace a run: write every named intermediate to a safetensors file as it is computed.

A run is one pass over a prompt, or several: chunks of the prompt, then cached decoding, one token in each pass. The
records of the first pass have the names of `gemma_np.model.records`, those of pass n the prefix `pass.n.`, counted from
0; the rows of a record are the tokens of its pass. Since a correct cache changes no result, the reference reads all ids
in one uncached pass and slices the records of each pass from its rows.

The last axis of scores and probabilities has all keys so far, in the order of their positions. A dump may omit keys at
the front that no token of the pass can see, as a ring buffer does.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.checkpoints.config_json import config_to_json
from gemma_np.checkpoints.safetensors_file import file_header
from gemma_np.config import GemmaConfig
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.model.attention_mask import attention_mask
from gemma_np.model.records import record_shapes
from gemma_np.model.transformer import lm_head, transformer
from gemma_np.scope import Record, Tape

_OVER_KEYS = ("scores", "scores_capped", "probs")

Passes = Sequence[Sequence[int]]
"""The token ids of each pass."""


class RecordSlice(NamedTuple):
    """The position of a record of one pass within the same record of the pass over all ids."""

    key: str  # its name in a file
    name: str
    shape: tuple[int, ...]
    rows: slice
    columns: slice | None  # of keys; None when the last axis is not that of keys
    window: int | None  # of its layer, when the last axis is that of keys

    def select(self, value: np.ndarray) -> np.ndarray:
        """Return this pass's part of the record of all N ids, as a view: [..., N, n] -> [..., T, n], or [..., T, S] if
        the last axis is that of keys."""
        part = value[..., self.rows, :]
        return part if self.columns is None else part[..., self.columns]

    @property
    def masked(self) -> np.ndarray | None:
        """Return True for scores whose key the query may not see, which can have any value: bool [T, S]. None for other
        records."""
        if self.columns is None or self.name.endswith("probs"):
            return None
        rows = range(self.rows.start, self.rows.stop)
        return ~attention_mask(rows, range(self.columns.stop), self.window)


def record_slices(config: GemmaConfig, lengths: Sequence[int]) -> Iterator[RecordSlice]:
    """Yield every record of a run with passes of these lengths, in the order of execution."""
    end = 0
    for number, T in enumerate(lengths):
        start, end = end, end + T
        for name, shape in record_shapes(config, T).items():
            columns = window = None
            if name.endswith(_OVER_KEYS):
                columns, shape = slice(0, end), (*shape[:-1], end)
                window = config.window(int(name.split(".")[1]))
            key = name if number == 0 else f"pass.{number}.{name}"
            yield RecordSlice(key, name, shape, slice(start, end), columns, window)


class Reference:
    """The reference that a dump is compared with: a model and the token ids of each pass."""

    def __init__(self, model: Gemma, passes: Passes) -> None:
        self.model, self.config, self.passes = model, model.config, passes
        self.ids = [int(token) for ids in passes for token in ids]
        self.lengths = [len(ids) for ids in passes]
        self.slices = {record_slice.key: record_slice for record_slice in record_slices(model.config, self.lengths)}

    @property
    def names(self) -> list[str]:
        """Return the names of all records, without passes, in the order of execution."""
        return list(dict.fromkeys(record_slice.name for record_slice in self.slices.values()))

    @property
    def pass_starts(self) -> np.ndarray:
        """Return where the pass of each token starts: [N]."""
        return np.repeat(np.cumsum([0, *self.lengths[:-1]]), self.lengths)

    @property
    def pass_ends(self) -> np.ndarray:
        """Return where the pass of each token ends: [N]."""
        return np.repeat(np.cumsum(self.lengths), self.lengths)

    def matching(self, pattern: str) -> list[RecordSlice]:
        """Return the records whose names match a pattern, with or without the pass.

        Raises GemmaError when there are none.
        """
        found = [own for key, own in self.slices.items() if fnmatchcase(key, pattern) or fnmatchcase(own.name, pattern)]
        if not found:
            expected = "expected a pattern of names that gemma-np records lists"
            raise GemmaError(f"filter: {pattern!r} matches no record, {expected}")
        return found

    def of_last_rows(self, rows: Mapping[str, int]) -> "Reference":
        """Return the same reference with shorter records: key -> the number of rows, the last of their pass."""
        other = copy(self)
        other.slices = dict(self.slices)
        for key, count in rows.items():
            own = self.slices[key]
            shape = (*own.shape[:-2], count, own.shape[-1])
            other.slices[key] = own._replace(shape=shape, rows=slice(own.rows.stop - count, own.rows.stop))
        return other

    def with_model(self, model: Gemma) -> "Reference":
        """Return the same reference with another model of the same config."""
        other = copy(self)
        other.model = model
        return other

    def run(self, tape: Tape) -> None:
        """Run one pass over all ids, with every record going through the tape."""
        x = transformer(self.ids, self.model.weights, self.config, tape=tape)
        lm_head(x, self.model.weights, self.config, tape)

    def records(self, tape: Tape | None = None) -> dict[str, np.ndarray]:
        """Return every record of the run by its name in a file, in the order of execution; a tape can change them."""
        record = Record()
        self.run(lambda name, value: record(name, tape(name, value) if tape else value))
        return {key: record_slice.select(record[record_slice.name]) for key, record_slice in self.slices.items()}


def write_trace(model: Gemma, passes: Passes, path: str | Path, *, pattern: str = "*", source: str = "") -> int:
    """Write the records whose names match the pattern (`layers.0.*`: in every pass; `pass.1.layers.0.*`: in one) to a
    safetensors file, and return their number.

    The records have the dtype of the weights and are not kept in memory. The metadata has `config` (as in config.json),
    `passes` (the token ids), `model` (`source`, from which `gemma-np compare` loads the weights) and `gemma_np` (the
    version).

    Raises GemmaError when the pattern matches no record.
    """
    reference = Reference(model, passes)
    chosen = reference.matching(pattern)
    metadata = {
        "config": json.dumps(config_to_json(model.config)),
        "passes": json.dumps([[int(token) for token in ids] for ids in passes]),
        "model": source,
        "gemma_np": version("gemma-np"),
    }
    dtype = model.weights["model.norm.weight"].dtype

    def write(partial: Path) -> None:
        shapes = {record_slice.key: (dtype, record_slice.shape) for record_slice in chosen}
        header, offsets = file_header(shapes, metadata)
        by_name: dict[str, list[RecordSlice]] = {}
        for record_slice in chosen:
            by_name.setdefault(record_slice.name, []).append(record_slice)
        with ExitStack() as stack:
            file = stack.enter_context(partial.open("wb"))
            file.write(header)

            def tape(name: str, value: np.ndarray) -> np.ndarray:
                for record_slice in by_name.get(name, ()):
                    file.seek(len(header) + offsets[record_slice.key])
                    file.write(np.ascontiguousarray(record_slice.select(value)).data)
                return value

            reference.run(tape)

    atomic_write(Path(path), write)
    return len(chosen)

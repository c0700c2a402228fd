"""Cache the distributions of a teacher, or the mean of several, on disk: they read the texts once, for any number of
students.

A full distribution is V numbers per token; its k most likely tokens and the total mass of the others carry nearly as
much information. They are stored in safetensors files of up to 256 texts each: ids [n, T + 1], top [n, T, k], and probs
[n, T, k] in float16. Each file is written completely or not at all, so an interrupted run continues with the missing
ones.

The mean of several teachers is better than each of them, because their errors differ.

Sources: Gemma 2 report, section 3 (Knowledge Distillation). The Gemma 3 report, arXiv 2503.19786, section 2.2, also
keeps a part of the teacher's vocabulary: 256 sampled tokens at each position. Hinton et al., arXiv 1503.02531, distill
an ensemble.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.checkpoints.checksum import CHECKSUM, checksum
from gemma_np.checkpoints.safetensors_file import IDS, read_metadata, stored_tensors, write_tensors
from gemma_np.errors import GemmaError
from gemma_np.gemma import Gemma
from gemma_np.json_input import list_of, object_of, parse_json, read_json, whole_number
from gemma_np.model.log_probs import log_softmax
from gemma_np.mpi import Ranks
from gemma_np.progress import progress_bar
from gemma_np.text.tokenizer import Tokenizer, read_tokenizer
from gemma_np.training.data import check_tokens
from gemma_np.training.distillation import check_same_vocabulary, weights_digest
from gemma_np.training.losses import TopK, soft_cross_entropy_top_k
from gemma_np.training.task import Batch
from gemma_np.training.training_state import State

_SETTINGS = "targets.json"
_TEXTS = 256  # per file
_BATCH_SIZE = 8  # texts that the teacher reads at once
_DTYPES = IDS | {"F16": np.float16}
_CHECKSUMS = object_of({name: CHECKSUM for name in ("ids", "top", "probs")})
_SETTINGS_VALUES = object_of(
    {"seq_len": whole_number(1), "top_k": whole_number(1), "tokens": whole_number(2), "teachers": list_of(CHECKSUM)}
)


def mean_probs(teachers: Sequence[Gemma], ids: np.ndarray) -> np.ndarray:
    """Return the mean of the teachers' distributions of the next token.

    ids [B, T] -> [B, T, V]
    """
    total = np.exp(log_softmax(teachers[0].logits(ids)))
    for teacher in teachers[1:]:
        total += np.exp(log_softmax(teacher.logits(ids)))
    return total / len(teachers)


def top_k(probs: np.ndarray, k: int) -> TopK:
    """Return the k most likely tokens of each distribution, unsorted, and their probabilities.

    probs [..., T, V], k < V -> ids and probs [..., T, k]
    """
    ids = np.argpartition(probs, -k, axis=-1)[..., -k:]
    return TopK(ids, np.take_along_axis(probs, ids, axis=-1))


def check_targets(teachers: Sequence[Gemma], seq_len: int, k: int) -> None:
    """Check that there is a teacher, that all have the same vocabulary, of more than k tokens, and that they can read
    texts of that length. Raises GemmaError if not.
    """
    if not teachers:
        raise GemmaError("teacher: none, expected one or more")
    for other in teachers[1:]:
        check_same_vocabulary(other, teachers[0], "the first teacher")
    context = min(teacher.config.max_position_embeddings for teacher in teachers)
    if not 0 < seq_len <= context:
        raise GemmaError(f"seq_len: {seq_len}, expected 1 to the teacher's context of {context}")
    vocab_size = teachers[0].config.vocab_size
    if not 0 < k < vocab_size:
        raise GemmaError(f"top_k: {k}, expected 1 to {vocab_size - 1}, less than the vocabulary")


def write_targets(
    teachers: Sequence[Gemma],
    tokens: np.ndarray,
    seq_len: int,
    k: int,
    folder: Path,
    ranks: Ranks | None = None,
) -> None:
    """Write the top-k probabilities of the teachers' mean on tokens [N], read in texts of `seq_len`, to a folder.

    Existing files are kept; the ranks share the missing ones. Raises GemmaError for what `check_targets` checks, when
    the folder was started with other settings, and when an existing file is damaged.
    """
    ranks = ranks or Ranks()
    check_targets(teachers, seq_len, k)
    check_tokens(tokens, seq_len)
    digests = [weights_digest(teacher) for teacher in teachers]
    settings: dict[str, Any] = {"seq_len": seq_len, "top_k": k, "tokens": len(tokens), "teachers": digests}
    vocab_size = teachers[0].config.vocab_size
    if ranks.rank == 0 and not (folder / _SETTINGS).exists():
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / _SETTINGS, lambda partial: partial.write_text(json.dumps(settings) + "\n"))
    ranks.barrier()
    for name, value in read_settings(folder).items():
        if settings[name] != value:
            raise GemmaError(f"{folder}: was started with {name}={value}, but this run asks for {settings[name]}")
    texts = (len(tokens) - 1) // seq_len
    dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
    missing = []
    for number, path in enumerate(_files(folder, texts)):
        if not path.exists():
            missing.append((number, path))
        elif number % ranks.size == ranks.rank:
            _open_targets(path, settings, min(_TEXTS, texts - number * _TEXTS), vocab_size)
    ranks.barrier()  # all ranks list the missing files before any of them is written
    own = missing[ranks.rank :: ranks.size]
    for number, path in progress_bar(own, desc="caching teacher", unit="files"):
        starts = range(number * _TEXTS * seq_len, min((number + 1) * _TEXTS, texts) * seq_len, seq_len)
        ids = np.stack([tokens[start : start + seq_len + 1] for start in starts])
        parts = [
            top_k(mean_probs(teachers, ids[first : first + _BATCH_SIZE, :-1].astype(np.int64)), k)
            for first in range(0, len(ids), _BATCH_SIZE)
        ]
        arrays = {
            "ids": ids.astype(dtype),
            "top": np.concatenate([part.ids for part in parts]).astype(dtype),
            "probs": np.concatenate([part.probs for part in parts]).astype(np.float16),
        }
        metadata = {"checksums": json.dumps({name: checksum(array) for name, array in arrays.items()})}
        write_tensors(path, arrays, metadata)


def random_targets(folder: Path, batch_size: int, vocab_size: int) -> Callable[[State], Batch]:
    """Return the `next_batch` of a task that trains on random texts with cached targets, written by `write_targets`.

    Raises GemmaError when a file is missing or damaged, or has ids that are not of the vocabulary.
    """
    settings = read_settings(folder)
    texts = (settings["tokens"] - 1) // settings["seq_len"]
    if texts < 1:
        raise GemmaError(f"{folder}: {settings['tokens']} tokens, expected more than seq_len={settings['seq_len']}")
    files = [
        _open_targets(path, settings, min(_TEXTS, texts - number * _TEXTS), vocab_size)
        for number, path in enumerate(_files(folder, texts))
    ]

    def text(number: int) -> list[np.ndarray]:
        file, row = divmod(number, _TEXTS)
        return [files[file][name][row] for name in ("ids", "top", "probs")]

    def next_batch(state: State) -> Batch:
        drawn = [text(number) for number in state.generator.integers(0, texts, batch_size).tolist()]
        ids, top, probs = (np.stack(arrays) for arrays in zip(*drawn, strict=True))
        return Batch(ids.astype(np.int64), teacher=TopK(top.astype(np.int64), probs.astype(np.float32)))

    return next_batch


def _open_targets(path: Path, settings: Mapping[str, Any], texts: int, vocab_size: int) -> dict[str, np.ndarray]:
    """Return the memory-mapped arrays of one file, checked against the settings and the vocabulary."""
    stored = stored_tensors(path, _DTYPES)
    checksums = parse_json(read_metadata(path).get("checksums", "{}"), _CHECKSUMS, path)
    positions = (texts, settings["seq_len"])
    shapes = {"ids": (texts, positions[1] + 1), "top": (*positions, settings["top_k"])}
    shapes["probs"] = shapes["top"]
    arrays = {}
    for name, shape in shapes.items():
        tensor = stored.get(name)
        if tensor is None or tensor.mapped is None or tensor.shape != shape:
            raise GemmaError(f"{path}: {name}: {tensor.shape if tensor else 'missing'}, expected the shape {shape}")
        array = arrays[name] = tensor.mapped
        if (array.dtype == np.float16) != (name == "probs"):
            raise GemmaError(f"{path}: {name}: {array.dtype}, expected {'float16' if name == 'probs' else 'integers'}")
        if checksum(array) != checksums[name]:
            raise GemmaError(f"{path}: {name}: damaged (wrong checksum); to mend it, remove it, repeat cache-teacher")
    if max(arrays["ids"].max(), arrays["top"].max()) >= vocab_size:
        raise GemmaError(f"{path}: has ids that are too large, expected at most {vocab_size - 1}")
    return arrays


def _files(folder: Path, texts: int) -> Iterator[Path]:
    count = math.ceil(texts / _TEXTS)
    return (folder / f"targets-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1))


def from_targets(logits: np.ndarray, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss against cached distributions. Raises GemmaError when the batch has none.

    logits [B, T, V] -> losses [B, T], dlogits [B, T, V]
    """
    if batch.teacher is None:
        raise GemmaError("targets: none in the batch, expected a batch of random_targets")
    return soft_cross_entropy_top_k(logits, batch.teacher)


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of the targets in a folder: seq_len, top_k, number of tokens, digests of the teachers.

    Raises GemmaError when the folder has no targets.
    """
    settings: dict[str, Any] = read_json(folder / _SETTINGS, _SETTINGS_VALUES, "the output of gemma-np cache-teacher")
    return {name: settings[name] for name in _SETTINGS_VALUES.fields}


def targets_tokenizer(targets: str | Path) -> Tokenizer:
    """Return the tokenizer of cached targets. Raises GemmaError when the folder has none."""
    read_settings(Path(targets))
    return read_tokenizer(Path(targets) / "tokenizer.model")

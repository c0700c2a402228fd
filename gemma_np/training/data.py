"""Training data: tokenize documents once into a file of ids, memory-map it, and draw batches from it."""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.checkpoints.checksum import CHECKSUM, checksum
from gemma_np.errors import GemmaError, quoted, shortened
from gemma_np.input_files import read_bytes, read_text, require_file
from gemma_np.json_input import object_of, read_json
from gemma_np.mpi import Ranks
from gemma_np.progress import progress_bar
from gemma_np.text.tokenizer import Tokenizer
from gemma_np.training.task import Batch
from gemma_np.training.training_state import State

Texts = str | Path | np.ndarray | Sequence[int]
"""A text file, a folder of .txt files, or token ids [N]."""


_ORIGIN = "origin.json"
_CHECKSUMS = object_of({"checksums": object_of({"train": CHECKSUM, "validation": CHECKSUM})})


class Split(NamedTuple):
    """The data that a run is trained and evaluated on."""

    train: np.ndarray  # ids [N]; for conversations, rows [N, 2, T + 1]
    validation: np.ndarray  # the same, held out; may be empty


def text_files(path: Path) -> list[Path]:
    """Return the .txt files below a folder, sorted by name, or the file itself. One file is one document.

    Raises GemmaError when there is none.
    """
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise GemmaError(f"{path}: no text, expected a file or a folder with .txt files")
    for file in files:
        require_file(file, "a text file")
    return files


def tokenize_texts(
    texts: Texts,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    val_fraction: float = 0.05,
    seed: int = 0,
    keep: bool = False,
    ranks: Ranks | None = None,
) -> Split:
    """Tokenize texts into a folder, split by document; of token ids [N], the last `val_fraction` are held out.

    With `keep`, the tokens of an earlier call on the same texts are reused. Only rank 0 writes.

    Raises GemmaError when an earlier call had other texts or settings, when its tokens are damaged, when the ids are
    not those of the tokenizer, and when there are too few documents to split.
    """
    ranks = ranks or Ranks()
    if ranks.rank == 0:
        origin: dict[str, Any] = {"tokenizer": zlib.crc32(tokenizer.model), "val_fraction": val_fraction, "seed": seed}
        if not isinstance(texts, str | Path):
            ids = check_ids(np.asarray(texts), len(tokenizer))
            held_out = round(check_fraction(val_fraction) * len(ids))
            origin["ids"] = checksum(ids)

            def make() -> dict[str, np.ndarray]:
                return {"train": ids[: len(ids) - held_out], "validation": ids[len(ids) - held_out :]}
        else:
            files = text_files(Path(texts))
            origin |= {"documents": len(files), "text": _checksum_of_files(files)}

            def make() -> dict[str, np.ndarray]:
                return tokenize_files(files, tokenizer, val_fraction, seed)

        prepare(folder, origin, make, keep=keep)
    ranks.barrier()
    return open_tokens(folder, len(tokenizer))


def tokenize_files(
    files: Sequence[Path], tokenizer: Tokenizer, val_fraction: float, seed: int
) -> dict[str, np.ndarray]:
    """Tokenize documents and return the ids to train and to validate on, [N] each, with `<bos>` before every document.

    The split is by document, so no part of a validation document is trained on: documents are shuffled with the seed,
    and the first `val_fraction` of them (at least one, unless it is 0) are held out.

    Raises GemmaError when there are too few documents to split.
    """
    parts = train_val_split(len(files), "documents", val_fraction, seed)
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    tokens = {}
    with progress_bar(total=len(files), desc="tokenizing", unit="documents") as progress:
        for name, chosen in parts.items():
            ids = [np.empty(0, dtype)]
            for number in chosen:
                ids.append(np.array(tokenizer.encode(read_text(files[number])), dtype))
                progress.update()
            tokens[name] = np.concatenate(ids)
    return tokens


def check_fraction(val_fraction: float) -> float:
    """Return `val_fraction`. Raises GemmaError unless it is at least 0 and less than 1."""
    if not 0 <= val_fraction < 1:
        raise GemmaError(f"val_fraction: {val_fraction}, expected 0 or more and less than 1")
    return val_fraction


def train_val_split(count: int, what: str, val_fraction: float, seed: int) -> dict[str, np.ndarray]:
    """Return the indices of the documents to validate and to train on, shuffled with the seed.

    `val_fraction` of them are held out, at least one unless it is 0. Raises GemmaError when there are too few to split.
    """
    held_out = max(1, round(val_fraction * count)) if check_fraction(val_fraction) else 0
    if held_out >= count:
        raise GemmaError(f"{what}: {count}, expected at least {held_out + 1} ({held_out} to validate on)")
    order = np.random.default_rng(seed).permutation(count)
    return {"validation": order[:held_out], "train": order[held_out:]}


def prepare(folder: Path, origin: dict[str, Any], make: Callable[[], Mapping[str, np.ndarray]], *, keep: bool) -> None:
    """Write the arrays that `make` returns, by name, with a record of their origin and their checksums.

    With `keep`, existing arrays stay. Raises GemmaError when these have another origin.
    """
    label = folder / _ORIGIN
    if keep and label.exists():
        recorded = read_json(label, object_of({}), "the origin of the data of a run")
        for name, value in origin.items():
            if recorded.get(name) != value:
                found = f"made with {name}={quoted(recorded.get(name))}, but this run asks for {quoted(value)}"
                raise GemmaError(f"{folder}: {found}")
        return
    arrays = make()
    folder.mkdir(parents=True, exist_ok=True)
    label.unlink(missing_ok=True)
    for name, array in arrays.items():
        _write_array(folder / f"{name}.npy", array)
    values = origin | {"checksums": {name: checksum(array) for name, array in arrays.items()}}
    atomic_write(label, lambda partial: partial.write_text(json.dumps(values) + "\n"))


def _write_array(path: Path, array: np.ndarray) -> None:
    def write(partial: Path) -> None:
        with partial.open("wb") as file:  # numpy.save does not notice when the disk is full at the end
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
            file.write(np.ascontiguousarray(array).data)

    atomic_write(path, write)


def _checksum_of_files(files: Sequence[Path]) -> int:
    """Return the CRC-32 of the contents of files, with their lengths."""
    value = 0
    for file in files:
        content = read_bytes(file, "a text file")
        value = zlib.crc32(content, zlib.crc32(str(len(content)).encode(), value))
    return value


def open_tokens(folder: Path, vocab_size: int) -> Split:
    """Return the memory-mapped tokens [N] that `tokenize_texts` wrote.

    Raises GemmaError when they are missing, damaged, or no ids of this vocabulary.
    """
    split = open_split(folder)
    for part in split:
        check_ids(part, vocab_size, str(folder))
    return split


def open_split(folder: Path) -> Split:
    """Return the memory-mapped arrays that `prepare` wrote. Raises GemmaError when one is missing or damaged."""
    checksums = read_json(folder / _ORIGIN, _CHECKSUMS, "the origin of the data of a run")["checksums"]
    arrays = []
    for name in Split._fields:
        path = folder / f"{name}.npy"
        require_file(path, "a token file")
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # a damaged header can make NumPy raise anything
            raise GemmaError(f"{path}: damaged ({shortened(str(error))}), expected a token file") from None
        if not np.issubdtype(array.dtype, np.unsignedinteger):
            raise GemmaError(f"{path}: {array.dtype}, expected unsigned integers")
        if checksum(array) != checksums[name]:
            raise GemmaError(f"{path}: damaged (wrong checksum), expected the tokens that this run began with")
        arrays.append(array)
    return Split(*arrays)


def check_ids(ids: np.ndarray, vocab_size: int, what: str = "ids") -> np.ndarray:
    """Return token ids [N] as unsigned integers. Raises GemmaError when they are no ids of this vocabulary."""
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise GemmaError(f"{what}: {ids.dtype} of shape {ids.shape}, expected integers in one row")
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise GemmaError(f"{what}: from {ids.min()} to {ids.max()}, expected 0 to {vocab_size - 1}")
    return ids if np.issubdtype(ids.dtype, np.unsignedinteger) else ids.astype(np.uint32)


def check_tokens(tokens: np.ndarray, seq_len: int, what: str = "training texts") -> np.ndarray:
    """Return the tokens [N]. Raises GemmaError when they are too few for one text of `seq_len` and its targets."""
    if len(tokens) <= seq_len:
        raise GemmaError(f"{what}: {len(tokens)} tokens, expected more than seq_len={seq_len}")
    return tokens


def random_windows(tokens: np.ndarray, count: int, length: int, generator: np.random.Generator) -> np.ndarray:
    """Return windows at random positions of tokens [N]: ids [count, length]."""
    starts = generator.integers(0, len(tokens) - length + 1, count)
    return np.stack([tokens[start : start + length] for start in starts]).astype(np.int64)


def random_batches(tokens: np.ndarray, batch_size: int, seq_len: int) -> Callable[[State], Batch]:
    """Return the `next_batch` of a task that trains on random windows of tokens [N]: ids [batch_size, seq_len + 1].

    Raises GemmaError when there are too few tokens.
    """
    check_tokens(tokens, seq_len)
    return lambda state: Batch(random_windows(tokens, batch_size, seq_len + 1, state.generator))


def consecutive_batches(tokens: np.ndarray, batch_size: int, seq_len: int, limit: int = 20) -> list[Batch]:
    """Return the first windows of tokens [N], in order and without overlap, as at most `limit` batches.

    Raises GemmaError when there are too few tokens.
    """
    starts = range(0, len(check_tokens(tokens, seq_len, "validation texts")) - seq_len, seq_len)
    texts = [tokens[start : start + seq_len + 1].astype(np.int64) for start in starts[: batch_size * limit]]
    return [Batch(np.stack(texts[first : first + batch_size])) for first in range(0, len(texts), batch_size)]

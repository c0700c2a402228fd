"""Training data: tokenize documents once into a file of ids, memory-map it, and draw batches from it."""

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.errors import GemmaError
from gemma_np.input_files import read_text, require_file
from gemma_np.text.tokenizer import Tokenizer
from gemma_np.training.mpi import Ranks
from gemma_np.training.task import Batch
from gemma_np.training.training_state import State

Texts = str | Path | np.ndarray
"""A text file, a folder of .txt files, or token ids [N]."""


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

    Raises GemmaError when an earlier call had other texts or settings, and when there are too few documents to split.
    """
    ranks = ranks or Ranks()
    if ranks.rank == 0:
        origin: dict[str, Any] = {"tokenizer": zlib.crc32(tokenizer.model), "val_fraction": val_fraction, "seed": seed}
        if isinstance(texts, np.ndarray):
            ids, held_out = texts, round(check_fraction(val_fraction) * len(texts))
            origin["ids"] = zlib.crc32(np.ascontiguousarray(ids).tobytes())

            def write() -> None:
                write_array(folder / "train.npy", ids[: len(ids) - held_out].astype(np.uint32))
                write_array(folder / "validation.npy", ids[len(ids) - held_out :].astype(np.uint32))
        else:
            files = text_files(Path(texts))
            origin |= {"documents": len(files), "bytes": sum(file.stat().st_size for file in files)}

            def write() -> None:
                write_tokens(files, tokenizer, folder, val_fraction, seed)

        prepare(folder, origin, write, keep=keep)
    ranks.barrier()
    return Split(open_tokens(folder / "train.npy"), open_tokens(folder / "validation.npy"))


def write_tokens(files: Sequence[Path], tokenizer: Tokenizer, folder: Path, val_fraction: float, seed: int) -> None:
    """Tokenize documents into folder/train.npy and folder/validation.npy: arrays of ids with `<bos>` before every
    document.

    The split is by document, so no part of a validation document is trained on: documents are shuffled with the seed,
    and the first `val_fraction` of them (at least one, unless it is 0) are held out.

    Raises GemmaError when there are too few documents to split.
    """
    from tqdm import tqdm

    parts = train_val_split(len(files), "documents", val_fraction, seed)
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    with tqdm(total=len(files), desc="tokenizing", unit=" documents", delay=2, leave=False) as progress:
        for name, chosen in parts.items():
            ids = [np.empty(0, dtype)]
            for number in chosen:
                ids.append(np.array(tokenizer.encode(read_text(files[number])), dtype))
                progress.update()
            write_array(folder / f"{name}.npy", np.concatenate(ids))


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


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array [...] to an .npy file, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.save(file, array)

    atomic_write(path, write)


def prepare(folder: Path, origin: dict[str, Any], write: Callable[[], None], *, keep: bool) -> None:
    """Write the data of a run and a record of its origin; with `keep`, reuse existing data.

    Raises GemmaError when the existing data has another origin.
    """
    label = folder / "origin.json"
    if keep and label.exists():
        recorded = json.loads(label.read_text())
        for name, value in origin.items():
            if recorded.get(name) != value:
                raise GemmaError(f"{folder}: made with {name}={recorded.get(name)}, but this run asks for {value}")
        return
    label.unlink(missing_ok=True)
    write()
    atomic_write(label, lambda partial: partial.write_text(json.dumps(origin) + "\n"))


def open_tokens(path: Path) -> np.ndarray:
    """Return the memory-mapped ids of a token file, [N]. Raises GemmaError when it is not one."""
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise GemmaError(f"{path}: {error}, expected a token file") from None
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.unsignedinteger):
        raise GemmaError(f"{path}: {tokens.dtype} of shape {tokens.shape}, expected unsigned integers in one row")
    return tokens


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

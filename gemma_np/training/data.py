"""Text as training reads it: documents, tokenized once into a file of ids that is then memory-mapped."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.checkpoints.atomic_write import atomic_write
from gemma_np.errors import GemmaError
from gemma_np.text.tokenizer import Tokenizer
from gemma_np.training.task import Batch
from gemma_np.training.training_state import State


def text_files(path: Path) -> list[Path]:
    """The .txt files below a folder, or the file itself, in the order of their names. One file is one document.

    Raises GemmaError when there is none.
    """
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise GemmaError(f"{path}: no text, expected a file or a folder with .txt files")
    return files


def read_text(file: Path) -> str:
    """The text of a file. Raises GemmaError when it is no UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise GemmaError(f"{file}: {error}, expected a text file in UTF-8") from None


def write_tokens(files: Sequence[Path], tokenizer: Tokenizer, folder: Path, validation: float, seed: int) -> None:
    """Tokenize documents into folder/train.npy and folder/validation.npy: one long array of ids each, every document
    behind its own `<bos>`.

    The split is by document, so that nothing of a validation document was trained on: they are shuffled by the seed,
    and the first `validation` of them (at least one, if any is asked for) are held out.

    Raises GemmaError when there are too few documents to split.
    """
    from tqdm import tqdm

    parts = split(len(files), "documents", validation, seed)
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    with tqdm(total=len(files), desc="tokenizing", unit=" documents", delay=2, leave=False) as progress:
        for name, chosen in parts.items():
            ids = [np.empty(0, dtype)]
            for number in chosen:
                ids.append(np.array(tokenizer.encode(read_text(files[number])), dtype))
                progress.update()
            write_array(folder / f"{name}.npy", np.concatenate(ids))


def split(count: int, what: str, validation: float, seed: int) -> dict[str, np.ndarray]:
    """The numbers of the documents to validate and to train on, shuffled by the seed. The share `validation` of them
    is held out, at least one if any is asked for.

    Raises GemmaError when there are too few documents to split, or for a share that is none.
    """
    if not 0 <= validation < 1:
        raise GemmaError(f"validation: {validation}, expected a share from 0 to less than 1")
    held_out = max(1, round(validation * count)) if validation else 0
    if held_out >= count:
        raise GemmaError(f"{what}: {count}, expected at least {held_out + 1} ({held_out} to validate on)")
    order = np.random.default_rng(seed).permutation(count)
    return {"validation": order[:held_out], "train": order[held_out:]}


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array [...] to an .npy file beside its target, and put it in the target's place."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.save(file, array)

    atomic_write(path, write)


def prepare(folder: Path, about: dict[str, Any], write: Callable[[], None], keep: bool) -> None:
    """Write the data of a run, and last of all what they are made of; or keep what is there.

    Raises GemmaError when what is to be kept is made of something else.
    """
    label = folder / "about.json"
    if keep and label.exists():
        found = json.loads(label.read_text())
        for name, value in about.items():
            if found.get(name) != value:
                raise GemmaError(f"{folder}: made with {name}={found.get(name)}, expected {value} as asked for now")
        return
    label.unlink(missing_ok=True)
    write()
    atomic_write(label, lambda partial: partial.write_text(json.dumps(about) + "\n"))


def open_tokens(path: Path, length: int) -> np.ndarray:
    """The memory-mapped ids of a token file, [N]. Raises GemmaError when it is none, or too short for one text."""
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise GemmaError(f"{path}: {error}, expected a token file") from None
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.unsignedinteger):
        raise GemmaError(f"{path}: {tokens.dtype} of shape {tokens.shape}, expected unsigned integers in one row")
    if len(tokens) <= length:
        raise GemmaError(f"{path}: {len(tokens)} tokens, expected more than the length of {length}")
    return tokens


def draw_ids(tokens: np.ndarray, batch: int, length: int, generator: np.random.Generator) -> np.ndarray:
    """Stretches of a token file that begin anywhere: [batch, length] ids."""
    starts = generator.integers(0, len(tokens) - length + 1, batch)
    return np.stack([tokens[start : start + length] for start in starts]).astype(np.int64)


def random_batches(tokens: np.ndarray, batch: int, length: int) -> Callable[[State], Batch]:
    """Draw batches of `length` tokens, and the one behind them, from a token file [N]: ids [batch, length + 1]."""
    return lambda state: Batch(draw_ids(tokens, batch, length + 1, state.generator))


def consecutive_texts(tokens: np.ndarray, batch: int, length: int, limit: int = 20) -> list[Batch]:
    """The texts of a validation file [N] one after the other, without overlap: at most `limit` batches of up to `batch`
    texts, always the same."""
    starts = range(0, len(tokens) - length, length)
    texts = [tokens[start : start + length + 1].astype(np.int64) for start in starts[: batch * limit]]
    return [Batch(np.stack(texts[first : first + batch])) for first in range(0, len(texts), batch)]

"""Conversations for fine-tuning, with a loss on the model's turns only.

A file has one JSON object per line: {"messages": [{"role": "user", "content": "..."}, {"role": "model", ...}, ...]};
as in `chat_ids`, "assistant" is taken for "model", and the first message may be one of "system".

Source: Gemma 2 report, section 4 (supervised fine-tuning) and tables 4 and 5 (the turns).
"""

import json
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gemma_np.errors import GemmaError, GemmaWarning
from gemma_np.json_input import TEXT, list_of, object_of, read_json_lines
from gemma_np.mpi import Ranks
from gemma_np.text.chat import as_turns, check_messages, turn_ids
from gemma_np.text.tokenizer import Tokenizer
from gemma_np.training.data import Split, open_split, prepare, train_val_split
from gemma_np.training.task import Batch
from gemma_np.training.training_state import State

_CONVERSATION = object_of({"messages": list_of(object_of({"role": TEXT, "content": TEXT}))})


def read_conversations(file: Path) -> list[list[dict[str, str]]]:
    """Read the conversations of a file. Raises GemmaError, with the line number, for an invalid one."""
    conversations = []
    for line, values in read_json_lines(file, _CONVERSATION, "a file with one conversation per line, as JSON"):
        try:
            check_messages(values["messages"], last="model")
        except GemmaError as error:
            raise GemmaError(f"{line}: {error}") from None
        conversations.append(as_turns(values["messages"]))
    return conversations


def conversation_ids(messages: list[dict[str, str]], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Encode a conversation: return its ids and, for each, whether it counts in the loss.

    What counts is the content of the model's turns and the `<end_of_turn>` after it.
    """
    ids, mask = [tokenizer.bos], [False]
    for turn in as_turns(messages):
        opening, content, closing = turn_ids(turn, tokenizer)
        is_model = turn["role"] == "model"
        ids += [*opening, *content, *closing]
        mask += [False] * len(opening) + [is_model] * (len(content) + 1) + [False] * (len(closing) - 1)
    return ids, mask


def tokenize_conversations(
    conversations: str | Path | Sequence[list[dict[str, str]]],
    tokenizer: Tokenizer,
    folder: Path,
    seq_len: int,
    *,
    val_fraction: float = 0.05,
    seed: int = 0,
    keep: bool = False,
    ranks: Ranks | None = None,
) -> Split:
    """Tokenize conversations (a file, or lists of messages) into a folder, as rows [N, 2, seq_len + 1]: the ids, and 1
    where the loss counts.

    Short conversations are padded with `<eos>` and long ones are cut; those whose first answer begins after the cut are
    left out, with a warning. With `keep`, the rows of an earlier call on the same conversations are reused. Only rank 0
    writes.

    Raises GemmaError when an earlier call had other conversations or settings, when its rows are damaged, and when
    there are too few conversations to split.
    """
    ranks = ranks or Ranks()
    if ranks.rank == 0:
        name = str(conversations) if isinstance(conversations, str | Path) else "conversations"
        read = read_conversations(Path(conversations)) if isinstance(conversations, str | Path) else conversations
        origin = {
            "conversations": zlib.crc32(json.dumps(read).encode()),
            "tokenizer": zlib.crc32(tokenizer.model),
            "seq_len": seq_len,
            "val_fraction": val_fraction,
            "seed": seed,
        }

        def make() -> dict[str, np.ndarray]:
            rows = conversation_rows(read, tokenizer, seq_len, name)
            parts = train_val_split(len(rows), "conversations", val_fraction, seed)
            return {part: rows[chosen] for part, chosen in parts.items()}

        prepare(folder, origin, make, keep=keep)
    ranks.barrier()
    split = open_split(folder)
    for part in split:
        if part.shape[1:] != (2, seq_len + 1) or (part.size and part[:, 0].max() >= len(tokenizer)):
            raise GemmaError(f"{folder}: rows of shape {part.shape[1:]}, expected ids and mask, (2, {seq_len + 1})")
    return split


def conversation_rows(
    conversations: Sequence[list[dict[str, str]]], tokenizer: Tokenizer, seq_len: int, name: str = "conversations"
) -> np.ndarray:
    """Return a row for each conversation with an answer in its first `seq_len` tokens: uint32 [N, 2, seq_len + 1]."""
    rows = np.zeros((len(conversations), 2, seq_len + 1), np.uint32)
    rows[:, 0] = tokenizer.eos
    for row, messages in zip(rows, conversations, strict=True):
        ids, mask = conversation_ids(messages, tokenizer)
        kept = min(len(ids), seq_len + 1)
        row[:, :kept] = ids[:kept], mask[:kept]
    has_answer = rows[:, 1, 1:].any(axis=-1)
    if not has_answer.all():
        left_out = f"{len(rows) - has_answer.sum()} of {len(rows)} conversations"
        message = f"{name}: {left_out} have no answer within {seq_len} tokens and are left out"
        warnings.warn(message, GemmaWarning, stacklevel=2)
    return rows[has_answer]


def random_conversations(rows: np.ndarray, batch_size: int) -> Callable[[State], Batch]:
    """Return the `next_batch` of a task that trains on random conversations from rows [N, 2, T + 1]."""
    return lambda state: as_batch(rows[state.generator.integers(0, len(rows), batch_size)])


def as_batch(rows: np.ndarray) -> Batch:
    """Return rows [B, 2, T + 1] as a batch."""
    return Batch(rows[:, 0].astype(np.int64), rows[:, 1, 1:] == 1)


def all_conversations(rows: np.ndarray, batch_size: int) -> list[Batch]:
    """Return the batches of an evaluation, with every conversation once: rows [N, 2, T + 1]."""
    return [as_batch(rows[first : first + batch_size]) for first in range(0, len(rows), batch_size)]

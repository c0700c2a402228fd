"""Conversations to fine-tune on: what counts is what the model says, not what it is told.

A file has a JSON object a line: {"messages": [{"role": "user", "content": "..."}, {"role": "model", ...}, ...]};
"assistant" is another word for "model".

Source: Gemma 2 report, section 4 (supervised fine-tuning) and tables 4 and 5 (the turns).
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gemma_np.errors import GemmaError
from gemma_np.text.chat import check_messages, turn_ids
from gemma_np.text.tokenizer import Tokenizer
from gemma_np.training.data import split, write_array
from gemma_np.training.task import Batch
from gemma_np.training.training_state import State


def read_conversations(file: Path) -> list[list[dict[str, str]]]:
    """The conversations of a file. Raises GemmaError, with the line's number, for one that is none."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # other line breaks may stand inside of a string
    except (OSError, UnicodeDecodeError) as error:
        raise GemmaError(f"{file}: {error}, expected a file with a conversation a line") from None
    conversations = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            messages = [
                {**message, "role": "model" if message["role"] == "assistant" else message["role"]}
                for message in json.loads(line)["messages"]
            ]
            check_messages(messages, last="model")
        except GemmaError as error:
            raise GemmaError(f"{file}, line {number}: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise GemmaError(f"{file}, line {number}: {error!r}, expected an object with messages") from None
        conversations.append(messages)
    return conversations


def conversation_ids(messages: list[dict[str, str]], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """The ids of a whole conversation, and of each whether the model has to learn to say it: the content of its own
    turns, and `<end_of_turn>`."""
    ids, said = [tokenizer.bos], [False]
    for message in messages:
        opening, content, closing = turn_ids(message, tokenizer)
        its_own = message["role"] == "model"
        ids += [*opening, *content, *closing]
        said += [False] * len(opening) + [its_own] * (len(content) + 1) + [False] * (len(closing) - 1)
    return ids, said


def write_conversations(
    file: Path, tokenizer: Tokenizer, folder: Path, length: int, validation: float, seed: int
) -> None:
    """Tokenize conversations into folder/train.npy and folder/validation.npy, a row each: [N, 2, length + 1], first
    the ids, then 1 where the model has to learn to say them. Short ones are filled up with `<eos>`, and long ones cut;
    those whose first answer begins behind the cut are left out, with a warning.

    Raises GemmaError when there are too few to split.
    """
    conversations = read_conversations(file)
    rows = np.zeros((len(conversations), 2, length + 1), np.uint32)
    rows[:, 0] = tokenizer.eos
    for row, messages in zip(rows, conversations, strict=True):
        ids, said = conversation_ids(messages, tokenizer)
        kept = min(len(ids), length + 1)
        row[:, :kept] = ids[:kept], said[:kept]
    counts = rows[:, 1, 1:].any(axis=-1)
    if not counts.all():
        left_out = f"{len(rows) - counts.sum()} of {len(rows)} conversations"
        warnings.warn(f"{file}: {left_out} have no answer within {length} tokens and are left out", stacklevel=2)
    for name, chosen in split(int(counts.sum()), "conversations", validation, seed).items():
        write_array(folder / f"{name}.npy", rows[counts][chosen])


def draw_conversations(rows: np.ndarray, batch: int) -> Callable[[State], Batch]:
    """Draw batches of conversations, from the rows [N, 2, T + 1] of `write_conversations`."""
    return lambda state: as_batch(rows[state.generator.integers(0, len(rows), batch)])


def as_batch(rows: np.ndarray) -> Batch:
    """Rows [B, 2, T + 1] as a batch."""
    return Batch(rows[:, 0].astype(np.int64), rows[:, 1, 1:] == 1)


def all_conversations(rows: np.ndarray, batch: int) -> list[Batch]:
    """Every conversation once, in batches: what a run is measured on; rows [N, 2, T + 1]."""
    return [as_batch(rows[first : first + batch]) for first in range(0, len(rows), batch)]

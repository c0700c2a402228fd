"""Conversations from plays: a speech is the user's turn, and the reply of the next speaker is the model's."""

import re
from collections.abc import Callable, Iterator

import numpy as np

from gemma_np.config import GemmaConfig
from gemma_np.text.tokenizer import END_OF_TURN, Tokenizer
from gemma_np.training.conversations import conversation_ids
from gemma_np.training.distillation import sample_continuations
from gemma_np.training.task import Batch
from gemma_np.training.training_state import State

REPLY_TOKENS = 64  # of the replies to train on

Conversation = list[dict[str, str]]

_STAGE_DIRECTION = re.compile(r"\[[^\]]*\]|\([^)]*(?:Enter|Exit|Exeunt)[^)]*\)")
_NEW_SCENE = re.compile(r"(?:ACT|SCENE|Scene|PROLOGUE|EPILOGUE)\b")
_SPEAKER = re.compile(r"[A-Z][\w' ]{,24}\.|[A-Z' ]{3,24}")


def conversations(play: str, tokenizer: Tokenizer, seq_len: int) -> Iterator[Conversation]:
    """Yield a conversation for every speech of a play that is answered: of four turns where they fit into `seq_len`
    tokens, otherwise of two, and none where not even these fit."""
    for scene in scenes(play):
        for first in range(len(scene) - 1):
            for turns in (4, 2):
                conversation = [
                    {"role": role, "content": speech}
                    for role, speech in zip(("user", "model") * 2, scene[first : first + turns], strict=False)
                ]
                ids, _ = conversation_ids(conversation, tokenizer)
                if len(conversation) == turns and len(ids) <= seq_len:
                    yield conversation
                    break


def scenes(play: str) -> Iterator[list[str]]:
    """Yield the speeches of each scene, without the speakers' names and the stage directions.

    A speech is a paragraph of two lines or more whose first is a name: with a full stop or in capitals.
    """
    speeches: list[str] = []
    for paragraph in re.split(r"\n\s*\n", _STAGE_DIRECTION.sub("", play)):
        first, *lines = [line.strip() for line in paragraph.strip().splitlines() if line.strip()] or [""]
        if _NEW_SCENE.match(first):
            yield speeches
            speeches = []
        elif lines and _SPEAKER.fullmatch(first):
            speeches.append("\n".join(lines))
    yield speeches


def own_replies(
    rows: np.ndarray, config: GemmaConfig, tokenizer: Tokenizer, batch_size: int
) -> Callable[[State], Batch]:
    """Return the `next_batch` of a task that trains on the model's own replies to the first turns of conversations.

    The prompts of a batch have the same length, so that the model replies to all of them at once. The loss counts on
    the reply, up to its `<end_of_turn>`: rows [N, 2, T + 1]
    """
    lengths = rows[:, 1].argmax(axis=-1)  # the first token of the first reply
    groups = {length: rows[lengths == length, 0, :length].astype(np.int64) for length in set(lengths.tolist())}
    end_of_turn = tokenizer.id(END_OF_TURN)

    def next_batch(state: State) -> Batch:
        length = int(state.generator.choice(lengths))
        group = groups[length]
        prompts = group[state.generator.integers(0, len(group), batch_size)]
        total = min(length + REPLY_TOKENS, rows.shape[-1])
        ids = sample_continuations(prompts, total, state.weights, config, state.generator)
        is_end = ids[:, length:] == end_of_turn
        counts = np.cumsum(is_end, axis=-1) - is_end == 0
        return Batch(ids, np.concatenate([np.zeros((batch_size, length - 1), bool), counts], axis=-1))

    return next_batch

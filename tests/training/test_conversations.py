"""Fine-tuning on conversations: the loss counts on the model's turns, and nowhere else."""

import json

import numpy as np
import pytest

import gemma_np
import gemma_np.training.conversations
from gemma_np import GemmaError
from gemma_np.cli import main
from gemma_np.errors import GemmaWarning
from gemma_np.text.chat import chat_ids
from gemma_np.training.conversations import (
    all_conversations,
    conversation_ids,
    random_conversations,
    read_conversations,
    tokenize_conversations,
)
from gemma_np.training.optimizer import AdamW
from gemma_np.training.task import Task, next_token
from gemma_np.training.trainer import initial_weights, loss_and_gradients
from gemma_np.training.training_state import State
from tests.support import tiny

TALK = [
    {"role": "user", "content": "How many ships?"},
    {"role": "model", "content": "None, on the third evening."},
    {"role": "user", "content": "And then?"},
    {"role": "model", "content": "She lit the lamp."},
]


def write(path, conversations):
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return path


def test_the_loss_counts_on_the_models_turns():
    tokenizer = tiny.tokenizer()
    ids, mask = conversation_ids(TALK, tokenizer)
    end = tokenizer.id("<end_of_turn>")
    expected = []
    for answer in ("None, on the third evening.", "She lit the lamp."):
        expected += [*tokenizer.encode(answer, bos=False), end]
    assert [token for token, counts in zip(ids, mask, strict=True) if counts] == expected
    # Before the first answer stands what `chat` reads before it writes one.
    assert ids[: mask.index(True)] == chat_ids(TALK[:1], tokenizer)


def test_tokens_outside_the_mask_have_no_gradient(tmp_path):
    """Other tokens after the last answer, outside the mask, change no loss and no gradient."""
    model = tiny.gemma()
    ids, mask = conversation_ids(TALK[:2], model.tokenizer)
    file = write(tmp_path / "a.jsonl", [TALK[:2]])
    rows = tokenize_conversations(file, model.tokenizer, tmp_path, len(ids) + 3, val_fraction=0).train
    assert (rows == np.load(tmp_path / "train.npy")).all()
    assert rows.shape == (1, 2, len(ids) + 4)
    assert rows[0, 1].sum() == sum(mask)
    (batch,) = all_conversations(rows, 4)
    loss, gradients, _ = loss_and_gradients(model.weights, model.config, batch, next_token)
    batch.ids[:, len(ids) :] = 7
    again, others, _ = loss_and_gradients(model.weights, model.config, batch, next_token)
    assert loss == again
    assert all(np.abs(gradients[name] - others[name]).max() == 0 for name in gradients)
    assert batch.num_targets == sum(mask)


def test_long_conversations_are_cut(tmp_path):
    ids, mask = conversation_ids(TALK, tiny.tokenizer())
    length = mask.index(True) + 3
    file = write(tmp_path / "a.jsonl", [TALK] * 3)
    rows = tokenize_conversations(file, tiny.tokenizer(), tmp_path, length, val_fraction=0).train
    assert rows.shape == (3, 2, length + 1)
    assert rows[1].tolist() == [ids[: length + 1], [int(counts) for counts in mask[: length + 1]]]
    batch = Task(random_conversations(rows, 2)).next_batch(State({}, AdamW(), np.random.default_rng(0)))
    assert batch.ids.shape == (2, length + 1)
    assert batch.loss_mask.shape == (2, length)


def test_conversations_without_an_answer_are_left_out(tmp_path):
    long = [{"role": "user", "content": "And then? " * 20}, TALK[1]]
    length = conversation_ids(TALK, tiny.tokenizer())[1].index(True) + 3
    file = write(tmp_path / "a.jsonl", [TALK, long, TALK])
    with pytest.warns(GemmaWarning, match=f"1 of 3 conversations have no answer within {length} tokens"):
        rows = tokenize_conversations(file, tiny.tokenizer(), tmp_path, length, val_fraction=0).train
    assert len(rows) == 2
    file = write(tmp_path / "b.jsonl", [long])
    with pytest.warns(match="1 of 1"), pytest.raises(GemmaError, match="conversations: 0, expected at least 1"):
        tokenize_conversations(file, tiny.tokenizer(), tmp_path, length, val_fraction=0)


def test_prepared_rows_of_another_shape_are_refused(tmp_path):
    file, tokenizer = write(tmp_path / "a.jsonl", [TALK] * 3), tiny.tokenizer()
    length = len(conversation_ids(TALK, tokenizer)[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemma_np.training.conversations, "conversation_rows", lambda *_: np.zeros((3, 2, 5), np.uint32))
        with pytest.raises(GemmaError, match=rf"rows of shape \(2, 5\), expected ids and mask, \(2, {length + 1}\)"):
            tokenize_conversations(file, tokenizer, tmp_path, length, val_fraction=0)


def test_the_role_assistant_means_model(tmp_path):
    talk = [{**message, "role": message["role"].replace("model", "assistant")} for message in TALK]
    assert read_conversations(write(tmp_path / "a.jsonl", [talk])) == [TALK]


def test_a_system_message_is_learned_from_as_it_is_read_in_chat():
    tokenizer, talk = tiny.tokenizer(), [{"role": "system", "content": "Be brief."}, *TALK[:2]]
    ids, mask = conversation_ids(talk, tokenizer)
    assert ids[: mask.index(True)] == chat_ids(talk[:2], tokenizer)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no JSON", "line 2: not JSON"),
        ("{}", "line 2: messages: missing, expected a list"),
        ('{"messages": 3}', "line 2: messages: 3, expected a list"),
        ('{"messages": []}', "line 2: messages: none"),
        (json.dumps({"messages": TALK[:3]}), "line 2: messages: the last is the user's, expected the model's"),
        (json.dumps({"messages": [TALK[0], {"role": "system", "content": "x"}]}), "line 2: message 1: role 'system'"),
    ],
)
def test_invalid_lines_are_refused(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": TALK}) + "\n" + line + "\n")
    with pytest.raises(GemmaError, match=message):
        read_conversations(tmp_path / "a.jsonl")


def test_the_command_line_fine_tunes_a_model_to_answer(tmp_path):
    start = initial_weights(tiny.config(), np.random.default_rng(0))
    gemma_np.Gemma(tiny.config(), start, tiny.tokenizer()).save(tmp_path / "model")
    write(tmp_path / "talk.jsonl", [TALK[:2]] * 4)
    tune = ["train", str(tmp_path / "talk.jsonl"), "--model", str(tmp_path / "model"), "-o", str(tmp_path / "tuned")]
    training = "--steps 150 --batch-size 2 --seq-len 50 --learning-rate 0.03 --warmup-steps 2 --val-fraction 0.25"
    assert main([*tune, *training.split()]) == 0
    assert gemma_np.load(tmp_path / "tuned").chat(TALK[:1]) == "None, on the third evening."

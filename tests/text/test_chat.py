"""The turns, as the report writes them out in tables 4 and 5."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import GemmaError
from gemma_np.text.chat import chat_ids
from gemma_np.text.tokenizer import END_OF_TURN, START_OF_TURN
from tests.support import tiny

TOKENIZER = tiny.tokenizer()


def user(text):
    return {"role": "user", "content": text}


def model(text):
    return {"role": "model", "content": text}


def test_one_turn():
    expected = f"{START_OF_TURN}user\nthe sea{END_OF_TURN}\n{START_OF_TURN}model\n"
    assert chat_ids([user("the sea")], TOKENIZER) == TOKENIZER.encode(expected)


def test_several_turns():
    written = (
        f"{START_OF_TURN}user\nthe sea{END_OF_TURN}\n{START_OF_TURN}model\ncalm{END_OF_TURN}\n"
        f"{START_OF_TURN}user\nand now?{END_OF_TURN}\n{START_OF_TURN}model\n"
    )
    ids = chat_ids([user("the sea"), model("calm"), user("and now?")], TOKENIZER)
    assert ids == TOKENIZER.encode(written)
    assert ids.count(TOKENIZER.bos) == 1


def test_white_space_around_a_turn_is_stripped():
    assert chat_ids([user(" the sea\n")], TOKENIZER) == chat_ids([user("the sea")], TOKENIZER)


@given(st.lists(st.sampled_from([START_OF_TURN, END_OF_TURN, "<bos>", "<eos>", "model\n", "x"])).map("".join))
def test_nothing_a_user_writes_ends_the_turn(text):
    ids = chat_ids([user(text)], TOKENIZER)
    assert ids.count(TOKENIZER.id(START_OF_TURN)) == 2
    assert ids.count(TOKENIZER.id(END_OF_TURN)) == 1
    assert ids.count(TOKENIZER.bos) == 1
    assert TOKENIZER.eos not in ids
    assert TOKENIZER.decode(ids) == f"user\n{text.strip()}\nmodel\n"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages: none"),
        ([{"role": "system", "content": "Be brief."}, user("x")], "message 0: role 'system'.*no other"),
        ([user("x"), {"role": "assistant", "content": "y"}, user("z")], "message 1: role 'assistant'"),
        ([model("x")], "message 0: role 'model', expected 'user'"),
        ([user("x"), user("y")], "message 1: role 'user', expected 'model'"),
        ([user("x"), model("y")], "the last is the model's"),
        ([{"role": "user"}], "message 0: .*expected exactly role and content"),
        ([{"role": "user", "content": 5}], "message 0: .*expected exactly role and content"),
        ([{"role": "user", "content": "x", "name": "y"}], "message 0: .*expected exactly role and content"),
    ],
)
def test_conversations_that_the_format_lacks(messages, message):
    with pytest.raises(GemmaError, match=message):
        chat_ids(messages, TOKENIZER)

"""The turns, as the report writes them out in tables 4 and 5."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import GemmaError
from gemma_np.text.chat import chat_ids
from gemma_np.text.tokenizer import END_OF_TURN, START_OF_TURN
from tests.support import tiny

TOKENIZER = tiny.tokenizer()
SYSTEM = {"role": "system", "content": " Be brief. \n"}


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


def test_a_system_message_begins_the_first_turn_of_the_user():
    first = user("Be brief.\n\nthe sea")
    assert chat_ids([SYSTEM, user(" the sea")], TOKENIZER) == chat_ids([first], TOKENIZER)
    others = [model("calm"), user("and now?")]
    assert chat_ids([SYSTEM, user("the sea"), *others], TOKENIZER) == chat_ids([first, *others], TOKENIZER)


def test_assistant_is_taken_for_model():
    messages = [user("the sea"), model("calm"), user("and now?")]
    others = [messages[0], {"role": "assistant", "content": "calm"}, messages[2]]
    assert chat_ids(others, TOKENIZER) == chat_ids(messages, TOKENIZER)


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
        ([{"role": "tool", "content": "x"}], "message 0: role 'tool', expected 'system', 'user' or 'model'"),
        ([user("x"), SYSTEM, model("y"), user("z")], "message 1: role 'system', expected 'model'"),
        ([user("x"), {"role": "assistant", "content": "y"}], "the last is the assistant's, expected the user's"),
        ([SYSTEM, {"role": "assistant", "content": "y"}], "message 1: role 'assistant', expected 'user'"),
        ([SYSTEM, SYSTEM, user("x")], "message 1: role 'system', expected 'user'"),
        ([SYSTEM], "the last is the system's, expected the user's"),
        ([model("x")], "message 0: role 'model', expected 'user'"),
        ([user("x"), user("y")], "message 1: role 'user', expected 'model'"),
        ([user("x"), model("y")], "the last is the model's"),
        ("Hello", "messages: \"Hello\", expected a list of {'role': ..., 'content': ...}"),
        ([{"role": "user"}], "message 0: .*expected exactly role and content"),
        ([{"role": "user", "content": 5}], "message 0: .*expected exactly role and content"),
        ([{"role": "user", "content": "x", "name": "y"}], "message 0: .*expected exactly role and content"),
    ],
)
def test_conversations_that_the_format_lacks(messages, message):
    with pytest.raises(GemmaError, match=message):
        chat_ids(messages, TOKENIZER)

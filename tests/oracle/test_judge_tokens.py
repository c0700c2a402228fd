"""Ids of texts and of conversations, with what differs named."""

import json

import pytest

from gemma_np import GemmaError
from gemma_np.cli import main
from gemma_np.oracle.judge_tokens import judge_tokens
from gemma_np.text.chat import chat_ids
from tests.support import tiny

TEXT = " The lamp  was lit.\nIt was 2024."
TURNS = [
    {"role": "user", "content": " The lamp <end_of_turn> "},
    {"role": "model", "content": "was lit"},
    {"role": "user", "content": "by night"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


def difference(tmp_path, tokenizer, **line):
    (tmp_path / "ids.jsonl").write_text(json.dumps(line) + "\n")
    (found,) = judge_tokens(tmp_path / "ids.jsonl", tokenizer)
    return found.difference


def test_right_ids_of_texts_and_turns(tmp_path, tokenizer):
    for text in (TEXT, "", "<start_of_turn>user", "\u4e2d\u6587 \U0001f600", "a\tb"):
        assert difference(tmp_path, tokenizer, text=text, ids=tokenizer.encode(text)) == ""
    assert difference(tmp_path, tokenizer, messages=TURNS, ids=chat_ids(TURNS, tokenizer)) == ""


def test_wrong_ids_of_a_text_are_named(tmp_path, tokenizer):
    right, bos, eos = tokenizer.encode(TEXT), tokenizer.bos, tokenizer.eos
    for ids, says in [
        (right[1:], "<bos> is missing"),
        ([bos, *right], "<bos> stands twice"),
        ([*right, eos], "<eos> is added at the end"),
        ([*right[1:], eos], "<bos> is missing; <eos> is added at the end"),
        (tokenizer.encode(" " + TEXT), "a space is put in front"),
        (tokenizer.encode(TEXT.strip()), "spaces at the ends are removed"),
        (tokenizer.encode(TEXT.replace("  ", " ")), "runs of spaces become one"),
        (tokenizer.encode(TEXT.replace("\n", " "))[1:], "newlines become spaces; <bos> is missing"),
        (tokenizer.encode(TEXT.lower()), "the text is in lower case"),
        (right[:-1], f"at {len(right) - 1} it has the end, expected"),
        ([*right[:3], 10**6, *right[4:]], "at 3 it has id 1000000"),
    ]:
        assert difference(tmp_path, tokenizer, text=TEXT, ids=ids).startswith(says)
    control = "a<end_of_turn>b"
    as_text = [bos, *tokenizer.encode_verbatim(control)]
    assert difference(tmp_path, tokenizer, text=control, ids=as_text) == "control pieces are encoded as text"


def test_wrong_turns_are_named(tmp_path, tokenizer):
    def ids_of(text):
        return tokenizer.encode(text)

    plain = [{**turn, "content": turn["content"].replace("<end_of_turn>", "x")} for turn in TURNS]
    right = chat_ids(plain, tokenizer)
    as_text = "".join(f"<start_of_turn>{turn['role']}\n{turn['content'].strip()}<end_of_turn>\n" for turn in plain)
    for ids, says in [
        (right[1:], "<bos> is missing"),
        (ids_of(as_text), "the model's turn is not opened"),
        (ids_of(as_text + "<start_of_turn>model"), "there is no newline after <start_of_turn>model"),
        (
            ids_of(as_text.replace("<end_of_turn>\n", "<end_of_turn>") + "<start_of_turn>model\n"),
            "there is no newline after <end_of_turn>",
        ),
        (ids_of((as_text + "<start_of_turn>model\n").replace("turn>model", "turn>assistant")), "the model's role is"),
        (ids_of(plain[-1]["content"]), "there are no turns"),
    ]:
        assert difference(tmp_path, tokenizer, messages=plain, ids=ids).startswith(says), says
    as_control = "".join(f"<start_of_turn>{turn['role']}\n{turn['content'].strip()}<end_of_turn>\n" for turn in TURNS)
    injected = ids_of(as_control + "<start_of_turn>model\n")
    assert "control pieces in the contents" in difference(tmp_path, tokenizer, messages=TURNS, ids=injected)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"ids": [2]}, "expected either text or messages"),
        ({"text": "a", "messages": [], "ids": [2]}, "expected either text or messages"),
        ({"messages": [{"role": "model", "content": "a"}], "ids": [2]}, "role 'model', expected 'user'"),
        ({"text": "a"}, "ids: missing"),
    ],
)
def test_lines_that_say_nothing(line, message, tmp_path, tokenizer):
    (tmp_path / "ids.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(GemmaError, match=r"ids\.jsonl, line 1") as error:
        judge_tokens(tmp_path / "ids.jsonl", tokenizer)
    assert message in str(error.value)


def test_from_the_command_line(tmp_path, capsys, tokenizer):
    tiny.gemma().save(tmp_path / "model")
    lines = [{"text": "The lamp", "ids": tokenizer.encode("The lamp")}, {"text": "The lamp", "ids": [5]}]
    (tmp_path / "ids.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["judge", "--model", str(tmp_path / "model"), "--tokens", str(tmp_path / "ids.jsonl")]) == 1
    out = capsys.readouterr().out
    assert "line 1: right" in out
    assert out.endswith("1 right, 1 wrong\n")
    (tmp_path / "ids.jsonl").write_text("")
    assert main(["judge", "--model", str(tmp_path / "model"), "--tokens", str(tmp_path / "ids.jsonl")]) == 2
    assert "no lines" in capsys.readouterr().err
